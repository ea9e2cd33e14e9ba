"""Which keys `tpru doctor` doubts, beside an overlay whose keys veRL has no default for."""

import pytest

pytest.importorskip("verl")
from tpru_verl.doctor import recipe as work
from tpru_verl.launch import plan


def test_keys_of_an_overlay_are_known_and_others_are_not() -> None:
    overrides = [
        "data.train_files=a",
        "data.val_files=b",
        "+tpru=[gdpo,sdpa]",
        "+algorithm.gdpo_reward_key=[acc]",
        "+actor_rollout_ref.actor.checkpoint.save_lora_only=true",
    ]
    found = list(work._keys(plan.compose("tpru_7b", overrides), "tpru_7b", overrides))
    assert [check.found for check in found] == [
        "algorithm.gdpo_reward_key: veRL has no such key, and nothing here reads it"
    ]
    assert found[0].fix == "meant algorithm.gdpo_reward_keys?"
