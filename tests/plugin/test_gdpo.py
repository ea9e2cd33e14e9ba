"""GDPO gets its rewards from where the agent loop put them; stock veRL's trainer hands it none."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl")
import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.trainer.ppo.v1 import utils
from verl.utils.torch_functional import masked_whiten

from tpru_verl.plugin import gdpo

REWARDS = {"acc": [1.0, 0.0, 0.0, 1.0], "format": [1.0, 1.0, 0.0, 1.0]}
GROUPS = np.array(["a", "a", "b", "b"], dtype=object)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
CONFIG = OmegaConf.create({"gdpo_reward_keys": ["acc", "format"], "gdpo_reward_weights": [0.875, 0.125]})


def batch() -> DataProto:
    rewards = torch.zeros(4, 3)
    return DataProto.from_dict(
        {"response_mask": MASK, "token_level_rewards": rewards}, non_tensors={"uid": GROUPS}
    )


def advantages(compute: Any) -> torch.Tensor:
    data = compute(batch(), ["k0", "k1", "k2", "k3"], "gdpo", norm_adv_by_std_in_grpo=True, config=CONFIG)
    return data.batch["advantages"]


def test_each_reward_is_normalised_in_its_group() -> None:
    told = [
        {"reward_extra_info": {key: values[i] for key, values in REWARDS.items()}, "other": 1}
        for i in range(4)
    ]
    queue = SimpleNamespace(kv_batch_get=lambda keys, partition_id, select_fields: {"extra_fields": told})
    module: Any = SimpleNamespace(
        __name__="trainer_base",
        tq=queue,
        compute_advantage_for_multi_trajectories=utils.compute_advantage_for_multi_trajectories,
    )
    gdpo.hand_over_rewards(module)
    found = advantages(module.compute_advantage_for_multi_trajectories)

    summed = torch.zeros(4, 3)
    for key, weight in zip(CONFIG.gdpo_reward_keys, CONFIG.gdpo_reward_weights, strict=True):
        scores = torch.zeros(4, 3)
        scores[:, 0] = torch.tensor(REWARDS[key])
        summed += weight * compute_grpo_outcome_advantage(scores, MASK, GROUPS)[0]
    torch.testing.assert_close(found, masked_whiten(summed, MASK) * MASK)
    assert found[0, 0] > 0 > found[1, 0]


def test_stock_verl_hands_over_none() -> None:
    """The patch can go when this fails."""
    with pytest.raises(KeyError, match="prompts"):
        advantages(utils.compute_advantage_for_multi_trajectories)


def test_other_estimators_ask_for_nothing() -> None:
    from verl.trainer.ppo.v1 import trainer_base

    patched: Any = trainer_base
    data = batch()
    found = patched.compute_advantage_for_multi_trajectories(
        data, ["a_0_0", "a_1_0", "b_0_0", "b_1_0"], "grpo", norm_adv_by_std_in_grpo=True, config=CONFIG
    )
    assert "prompts" not in found.batch
