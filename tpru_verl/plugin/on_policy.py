"""Patches that save a pass of the actor in steps of one update. docs/patches.md lists all patches.

Stock veRL 0.9.1 computes the "old" log-probabilities of each step in a pass of their own. With one mini-batch
a step and one epoch, the update computes the same values: the weights are the same, so the ratio of the two
is 1, and the gradient is that of the ratio at 1. The patches take the update's own values, detached, instead.

veRL also compares rollout and actor by the old log-probabilities (`training/rollout_probs_diff_*` and their
correlation). With the patches, the loss of the update gathers the sums for these metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import nan, sqrt
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tpru_verl.plugin.hooks import is_applied, replace, require

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDict

FLAG = "tpru_on_policy"
PREFIX = "tpru_sum_"
# The only advantages that veRL computes from the old log-probabilities.
_FROM_OLD = ("optimal_token_baseline", "tir_optimal_token_baseline")


def is_on_policy(config: Mapping[str, Any]) -> bool:
    """Whether a step may be one update of the weights that sampled it, and nothing else needs the old pass.

    Any loss will do: all of veRL's are functions of the new and the old log-probabilities, which are equal.
    """
    actor, rollout = config["actor_rollout_ref"]["actor"], config["actor_rollout_ref"]["rollout"]
    algorithm = config["algorithm"]
    correction = algorithm.get("rollout_correction") or {}
    distillation = config.get("distillation") or {}
    return (
        config["trainer"]["v1"]["trainer_mode"] == "sync"
        and actor["ppo_epochs"] == 1
        and actor["ppo_mini_batch_size"] >= config["data"]["train_batch_size"]
        and not actor.get("calculate_sum_pi_squared")
        and not _replays_routes(actor)
        and bool(rollout["calculate_log_probs"])
        and algorithm["adv_estimator"] not in _FROM_OLD
        and not algorithm["use_kl_in_reward"]
        and not any(correction.get(key) for key in ("bypass_mode", "rollout_is", "rollout_rs"))
        and not distillation.get("enabled")
    )


def is_one_update(config: Mapping[str, Any], samples: int) -> bool:
    """Whether veRL makes one update of a batch of so many samples, padding included.

    It cuts the batch into mini-batches of samples. A batch has more of them than its prompts say where an
    agent loop has several outputs a session, or where a critic has larger mini-batches.
    """
    actor, rollout = config["actor_rollout_ref"]["actor"], config["actor_rollout_ref"]["rollout"]
    return is_on_policy(config) and samples <= actor["ppo_mini_batch_size"] * rollout["n"]


def _saves_pass(trainer: Any, batch: Any) -> bool:
    """Asked at the step: the trainer imports the losses, and so patches them, before its first one."""
    return is_applied(own_log_probs.__name__) and is_one_update(trainer.config, len(batch))


def _replays_routes(actor: Mapping[str, Any]) -> bool:
    """Whether the update repeats the choice of experts that the old pass recorded (Megatron and VeOmni)."""
    engines = [actor.get(name) or {} for name in ("megatron", "veomni")]
    return any((engine.get("router_replay") or {}).get("mode") == "R2" for engine in engines)


def skip_old_log_probs(trainer_base: ModuleType) -> None:
    """Stock veRL runs the actor once more a step. The trainer now skips that pass in steps of one update.

    The log-probabilities of the rollout stand in, until the loss (`own_log_probs`) replaces them.
    """
    trainer = trainer_base.PPOTrainer
    require(trainer, "_compute_old_log_prob", "_compute_advantage", "_update_actor")
    compute, advantage, update = (
        trainer._compute_old_log_prob,
        trainer._compute_advantage,
        trainer._update_actor,
    )
    tq = trainer_base.tq

    def _compute_old_log_prob(self, batch, metrics: dict):
        if not _saves_pass(self, batch):
            return compute(self, batch, metrics)
        fields = ["rollout_log_probs"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        data["old_log_probs"] = data.pop("rollout_log_probs")
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=data)

    def _compute_advantage(self, batch, metrics: dict):
        batch = advantage(self, batch, metrics)
        if _saves_pass(self, batch):  # rollout was compared with itself
            for key in [key for key in metrics if key.startswith("rollout_corr/")]:
                del metrics[key]
        return batch

    def _update_actor(self, batch, metrics: dict):
        batch.extra_info[FLAG] = _saves_pass(self, batch)
        batch = update(self, batch, metrics)
        if batch.extra_info.pop(FLAG):
            sums = {key: metrics.pop(key) for key in list(metrics) if key.startswith(f"actor/{PREFIX}")}
            metrics.update(agreement({key.removeprefix(f"actor/{PREFIX}"): v for key, v in sums.items()}))
        return batch

    trainer._compute_old_log_prob = _compute_old_log_prob
    trainer._compute_advantage = _compute_advantage
    trainer._update_actor = _update_actor


def own_log_probs(losses: ModuleType) -> None:
    """The loss takes the update's own log-probabilities for the old ones that `skip_old_log_probs` skips."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import no_padding_2_padding, response_to_nested

    require(losses, "ppo_loss", "Metric")
    original = losses.ppo_loss

    def ppo_loss(config: object, model_output: dict, data: TensorDict, dp_group: object = None):
        if not tu.get(data, key=FLAG, default=False):
            return original(config, model_output, data, dp_group)
        actor = no_padding_2_padding(model_output["log_probs"], data).detach()
        sampled = data.select("response_mask", "old_log_probs").to_padded_tensor()
        found = sums(sampled["old_log_probs"], actor, sampled["response_mask"].bool())
        data["old_log_probs"] = response_to_nested(actor, data["response_mask"])
        loss, metrics = original(config, model_output, data, dp_group)
        for name, value in found.items():
            kind = "max" if name == "max" else "sum"
            metrics[PREFIX + name] = losses.Metric(value=value, aggregation=kind)
        return loss, metrics

    replace(losses, "ppo_loss", ppo_loss)


def sums(rollout: torch.Tensor, actor: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """The sums over one micro-batch that `agreement` needs; log-probabilities are [sequences, tokens]."""
    x, y = rollout[mask].double().exp(), actor[mask].double().exp()
    apart = (x - y).abs()
    parts = {"n": x.new_tensor(float(x.numel())), "x": x.sum(), "y": y.sum(), "xx": (x * x).sum()}
    parts |= {"yy": (y * y).sum(), "xy": (x * y).sum(), "diff": apart.sum(), "diff2": (apart * apart).sum()}
    parts["max"] = apart.max() if x.numel() else x.new_zeros(())
    return {name: value.item() for name, value in parts.items()}


def agreement(found: Mapping[str, float]) -> dict[str, float]:
    """The metrics of veRL's `calculate_debug_metrics` from sums over all sampled tokens; nan without any."""
    n = found["n"]
    mean = found["diff"] / n if n else nan
    spread = {v: n * found[v + v] - found[v] ** 2 for v in "xy"}
    both = sqrt(max(0.0, spread["x"])) * sqrt(max(0.0, spread["y"]))
    return {
        "training/rollout_probs_diff_valid": int(n > 0),
        "training/rollout_probs_diff_max": found["max"] if n else nan,
        "training/rollout_probs_diff_mean": mean,
        "training/rollout_probs_diff_std": sqrt(max(0.0, found["diff2"] / n - mean**2)) if n else nan,
        "training/rollout_actor_probs_pearson_corr": (n * found["xy"] - found["x"] * found["y"]) / both
        if both
        else nan,
    }
