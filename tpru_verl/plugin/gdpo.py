"""Patch that lets `algorithm.adv_estimator=gdpo` train. docs/patches.md lists all patches."""

from __future__ import annotations

from types import ModuleType

from tpru_verl.plugin.hooks import replace, require


def hand_over_rewards(trainer_base: ModuleType) -> None:
    """Stock veRL's trainer gives its GDPO only the sum of the rewards, and dies in the first step (KeyError).

    Read and run in 0.9.1: `_compute_advantage` fetches neither the rewards that `algorithm.gdpo_reward_keys`
    names nor the prompts that `compute_gdpo_outcome_advantage` asks for. The patch fetches the rewards from
    where the agent loop put them. An empty prompt will do, because only lengths of responses are wanted.
    """
    require(trainer_base, "compute_advantage_for_multi_trajectories", "tq")
    original, tq = trainer_base.compute_advantage_for_multi_trajectories, trainer_base.tq

    def compute_advantage_for_multi_trajectories(data, batch_keys, adv_estimator, **settings):
        if adv_estimator == "gdpo":
            import numpy as np

            fields = ["extra_fields"]
            found = tq.kv_batch_get(keys=batch_keys, partition_id="train", select_fields=fields)
            told = [getattr(item, "data", item)["reward_extra_info"] for item in found["extra_fields"]]
            for key in settings["config"].gdpo_reward_keys:
                data.non_tensor_batch[key] = np.array([float(rewards[key]) for rewards in told])
            mask = data.batch["response_mask"]
            data.batch["prompts"] = mask[:, :0]
            data.batch["attention_mask"] = mask
        return original(data, batch_keys, adv_estimator, **settings)

    replace(
        trainer_base, "compute_advantage_for_multi_trajectories", compute_advantage_for_multi_trajectories
    )
