"""With one update a step its own log-probabilities are the old ones: same gradient, same metrics."""

from copy import deepcopy
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl")
import torch
from omegaconf import open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl import DataProto
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils import tensordict_utils as tu
from verl.utils.debug.metrics import calculate_debug_metrics
from verl.workers.utils import losses

from tpru_verl import recipes
from tpru_verl.plugin import hooks, on_policy
from tpru_verl.recipes import overlays

LENGTHS = [5, 3, 4]
PROMPT = 2


@lru_cache
def config(*overrides: str) -> Any:
    return recipes.compose("tpru_tiny_cpu", ["data.train_files=a", "data.val_files=b", *overrides])


@pytest.mark.parametrize(
    "override",
    [
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.ppo_epochs=2",
        "actor_rollout_ref.actor.calculate_sum_pi_squared=true",
        "+actor_rollout_ref.actor.megatron.router_replay.mode=R2",
        "actor_rollout_ref.rollout.calculate_log_probs=false",
        "algorithm.rollout_correction.bypass_mode=true",
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.rollout_rs=token_k1",
        "algorithm.adv_estimator=optimal_token_baseline",
        "algorithm.use_kl_in_reward=true",
        "trainer.v1.trainer_mode=colocate_async",
    ],
)
def test_only_where_nothing_else_needs_the_old_pass(override: str) -> None:
    assert on_policy.is_on_policy(config())
    assert not on_policy.is_on_policy(config(override))


@pytest.mark.parametrize(
    ("overlay", "saves"),
    [(name, name != "tis") for name in overlays.names() if not name.startswith("one_gpu")],
)
def test_overlays_that_save_the_pass(overlay: str, saves: bool) -> None:
    assert on_policy.is_on_policy(config(f"+tpru={overlay}")) is saves


def test_one_gpu_saves_the_pass_that_the_big_recipe_needs() -> None:
    files = ["data.train_files=a", "data.val_files=b"]
    assert not on_policy.is_on_policy(recipes.compose("tpru_7b", files))
    assert on_policy.is_on_policy(recipes.compose("tpru_7b", [*files, "+tpru=[lora,one_gpu_80]"]))


class Trainer:
    """veRL's trainer but for what it computes; notes whether the old pass ran, and the flag of the update."""

    def __init__(self, settings: Any) -> None:
        self.config, self.old_pass, self.flag = settings, False, None

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self.old_pass = True
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        metrics["rollout_corr/kl"] = 0.1
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self.flag = (batch.extra_info or {})[on_policy.FLAG]
        if self.flag:
            zeros = on_policy.sums(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
            metrics.update({f"actor/{on_policy.PREFIX}{name}": value for name, value in zeros.items()})
        return batch


def step(settings: Any, samples: int) -> tuple[bool, bool | None, dict[str, float]]:
    """Whether the patched trainer ran the old pass, the flag of its update, and the metrics."""
    batch = KVBatchMeta(keys=[f"u_{i}_0" for i in range(samples)], tags=[{}] * samples, partition_id="train")

    class Patched(Trainer):
        pass

    tq = SimpleNamespace(
        kv_batch_get=lambda **_: {"rollout_log_probs": 0},
        kv_batch_put=lambda **given: KVBatchMeta(keys=given["keys"], tags=batch.tags, partition_id="train"),
    )
    on_policy.skip_old_log_probs(SimpleNamespace(PPOTrainer=Patched, tq=tq))  # type: ignore[arg-type]
    trainer, metrics = Patched(settings), {}
    for compute in (trainer._compute_old_log_prob, trainer._compute_advantage, trainer._update_actor):
        batch = compute(batch, metrics)
    return trainer.old_pass, trainer.flag, metrics


@pytest.mark.parametrize(("outputs", "saved"), [(1, True), (2, False)])
def test_the_pass_is_saved_where_the_batch_that_came_is_one_update(outputs: int, saved: bool) -> None:
    """An agent loop with two outputs a session gives two mini-batches: the second needs the old weights'."""
    prompts, n = config().data.train_batch_size, config().actor_rollout_ref.rollout.n
    old_pass, flag, metrics = step(config(), prompts * n * outputs)
    assert (old_pass, flag) == (not saved, saved)
    assert ("rollout_corr/kl" in metrics, "training/rollout_probs_diff_mean" in metrics) == (not saved, saved)


def test_the_pass_stays_where_the_other_half_of_the_patch_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_applied", hooks._applied - {"own_log_probs"})
    settings = config()
    assert step(settings, settings.data.train_batch_size)[:2] == (True, False)


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def micro_batch(old: list[torch.Tensor], **flags: object) -> TensorDict:
    """Sequences of 2 prompt tokens and responses of LENGTHS; `old` are log-probabilities of the responses."""
    fields = {
        "prompts": nested([torch.ones(PROMPT, dtype=torch.long) for _ in LENGTHS]),
        "responses": nested([torch.ones(n, dtype=torch.long) for n in LENGTHS]),
        "response_mask": nested([torch.ones(n, dtype=torch.long) for n in LENGTHS]),
        "advantages": nested([torch.full((n,), float(i) - 1) for i, n in enumerate(LENGTHS)]),
        "old_log_probs": nested(old),
    }
    data = TensorDict(fields, batch_size=len(LENGTHS))
    tu.assign_non_tensor(
        data, dp_size=1, batch_num_tokens=sum(LENGTHS), global_batch_size=len(LENGTHS), **flags
    )
    return data


LOSSES = sorted(set(POLICY_LOSS_REGISTRY) - {"bypass_mode"})


@pytest.mark.parametrize("loss_mode", LOSSES)
def test_gradient_and_metrics_are_those_of_a_pass_of_its_own(loss_mode: str, checkpoint: Any) -> None:
    from verl.utils import omega_conf_to_dataclass

    settings = deepcopy(config(f"actor_rollout_ref.model.path={checkpoint}")).actor_rollout_ref.actor
    with open_dict(settings.policy_loss):
        settings.policy_loss.update({"loss_mode": loss_mode, "dro_beta": 0.1})
    actor = omega_conf_to_dataclass(settings)
    torch.manual_seed(0)
    sampled = [-torch.rand(n) for n in LENGTHS]  # what vLLM said
    values = [-torch.rand(PROMPT + n) for n in LENGTHS]  # what the actor says: of each next token
    said = [row[PROMPT - 1 : -1] for row in values]
    grads, found = [], {}
    for flags, old in ({}, said), ({on_policy.FLAG: True}, sampled):
        torch.manual_seed(1)  # clip_cov draws the tokens that it clips
        leaves = [row.clone().requires_grad_() for row in values]
        loss, metrics = losses.ppo_loss(actor, {"log_probs": nested(leaves)}, micro_batch(old, **flags))
        loss.backward()
        grads.append(torch.cat([row.grad for row in leaves if row.grad is not None]))
        found = metrics
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[0], grads[1])

    width = max(LENGTHS)
    pad = torch.nn.functional.pad
    columns = {
        "rollout_log_probs": torch.stack([pad(row, (0, width - len(row))) for row in sampled]),
        "old_log_probs": torch.stack([pad(row, (0, width - len(row))) for row in said]),
        "response_mask": torch.tensor([[1] * n + [0] * (width - n) for n in LENGTHS]),
        "responses": torch.ones(len(LENGTHS), width),
    }
    expected = calculate_debug_metrics(DataProto.from_dict(columns))
    moments = {
        key.removeprefix(on_policy.PREFIX): metric.aggregate()
        for key, metric in found.items()
        if key.startswith(on_policy.PREFIX)
    }
    ours = on_policy.agreement(moments)
    assert ours.keys() == expected.keys()
    assert ours == pytest.approx(expected, rel=0.1)  # the spread of a sample there, of all tokens here
    for key in ("diff_mean", "diff_max"):
        name = f"training/rollout_probs_{key}"
        assert ours[name] == pytest.approx(expected[name], rel=1e-5)
    name = "training/rollout_actor_probs_pearson_corr"
    assert ours[name] == pytest.approx(expected[name], rel=1e-5)


def test_no_token_at_all_is_said_and_not_divided_by() -> None:
    empty = on_policy.sums(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    found = on_policy.agreement(empty)
    assert found["training/rollout_probs_diff_valid"] == 0
    assert all(value != value for key, value in found.items() if not key.endswith("valid"))
