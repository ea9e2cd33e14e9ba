"""What the overlays of algorithms do to the loss and the advantages, by veRL's own functions."""

from typing import Any

import pytest

pytest.importorskip("verl")
import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_policy_loss_fn
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch
from verl.utils import omega_conf_to_dataclass

from tpru_verl import recipes

LENGTHS = torch.tensor([4, 2])
MASK = (torch.arange(4) < LENGTHS[:, None]).float()
ADVANTAGES = torch.tensor([[1.0], [-2.0]]) * MASK
TOKENS, SEQUENCES = int(MASK.sum()), len(LENGTHS)


def composed(overlay: str):
    config = recipes.compose("tpru_7b", ["data.train_files=a", "data.val_files=b", f"+tpru={overlay}"])
    OmegaConf.resolve(config)
    return config


def gradient(overlay: str, ratio: torch.Tensor) -> torch.Tensor:
    """Of the loss by the log-probability of each token, where the new policy is `ratio` times the old one."""
    actor = omega_conf_to_dataclass(composed(overlay).actor_rollout_ref.actor)
    actor.global_batch_info.update(
        dp_size=1,
        batch_num_tokens=TOKENS,
        global_batch_size=SEQUENCES,
        loss_scale_factor=actor.loss_scale_factor,
    )
    old = torch.full(MASK.shape, -1.0)
    new = (old + ratio.log()).requires_grad_()
    policy_loss: Any = get_policy_loss_fn(actor.policy_loss.loss_mode)
    loss, _ = policy_loss(
        old_log_prob=old,
        log_prob=new,
        advantages=ADVANTAGES,
        response_mask=MASK.bool(),
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
    )
    loss.backward()
    assert new.grad is not None
    return new.grad


@pytest.mark.parametrize(
    ("overlay", "weights"),
    [
        ("dapo", torch.full((2, 1), 1 / TOKENS)),
        ("cispo", torch.full((2, 1), 1 / TOKENS)),
        ("gspo", 1 / (SEQUENCES * LENGTHS[:, None])),
        ("drgrpo", torch.full((2, 1), 1 / (SEQUENCES * 1024))),
    ],
)
def test_how_much_a_token_counts(overlay: str, weights: torch.Tensor) -> None:
    torch.testing.assert_close(gradient(overlay, torch.ones(2, 4)), -ADVANTAGES * weights)


@pytest.mark.parametrize(
    ("overlay", "kept"),
    # Of the first sequence, whose advantage is above 0: a token 1.25 or 1.5 times as likely as before.
    [("dapo", [1.25, 0.0]), ("cispo", [1.2, 1.2]), ("gspo", [0.0, 0.0])],
)
def test_what_is_left_of_a_token_that_became_likelier(overlay: str, kept: list[float]) -> None:
    ratio = torch.ones(2, 4)
    ratio[0, :2] = torch.tensor([1.25, 1.5])
    factor = gradient(overlay, ratio)[0, :2] / gradient(overlay, torch.ones(2, 4))[0, :2]
    torch.testing.assert_close(factor, torch.tensor(kept))


def test_drgrpo_keeps_the_size_of_a_difference() -> None:
    algorithm = omega_conf_to_dataclass(composed("drgrpo").algorithm)
    assert isinstance(algorithm, AlgoConfig)
    rewards = torch.tensor([[1.0, 0, 0, 0], [0.8, 0, 0, 0]])
    found, _ = compute_grpo_outcome_advantage(
        rewards, MASK, np.array(["a", "a"]), norm_adv_by_std_in_grpo=algorithm.norm_adv_by_std_in_grpo
    )
    torch.testing.assert_close(found[:, 0], torch.tensor([0.1, -0.1]))


def test_tis_weighs_a_token_by_trainer_over_vllm_and_at_most_2() -> None:
    vllm, trainer = torch.tensor([0.5, 0.5, 0.2, 0.5]), torch.tensor([0.5, 0.25, 0.8, 0.5])
    data = {
        "rollout_log_probs": vllm.log().repeat(2, 1),
        "old_log_probs": trainer.log().repeat(2, 1),
        "response_mask": MASK.long(),
    }
    found, _ = compute_rollout_correction_and_add_to_batch(
        DataProto.from_dict(data), composed("tis").algorithm.rollout_correction
    )
    weights = found.batch["rollout_is_weights"]
    torch.testing.assert_close(weights[0], torch.tensor([1.0, 0.5, 2.0, 1.0]))
