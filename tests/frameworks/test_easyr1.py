"""EasyR1's own reward managers, with our reward.

For another version than the one installed, put a checkout into PYTHONPATH: the manager's name and what it
passes changed, the configuration did not.
"""

from pathlib import Path

import pytest
from outputs import SCORES

from tpru_verl.reward_fns import easyr1, easyr1_legacy


@pytest.mark.parametrize("kind", ["batch", "sequential"])
def test_reward_manager(checkpoint: Path, kind: str) -> None:
    import torch
    from transformers import AutoTokenizer
    from verl.protocol import DataProto
    from verl.workers.reward import function  # pyright: ignore
    from verl.workers.reward.config import RewardConfig  # pyright: ignore

    old = "RewardInput" not in vars(function)
    adapter = easyr1_legacy if old else easyr1
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    path = f"{adapter.__file__}:compute_score"
    config = RewardConfig(reward_function=path, reward_function_kwargs={"preset": "tpru"})
    config.post_init()
    if hasattr(function, "AutoRewardManager"):
        manager = function.AutoRewardManager(config, tokenizer)
        assert manager.reward_type == "batch"
        manager.reward_type = kind
    else:
        manager = getattr(function, f"{kind.title()}FunctionRewardManager")(config, tokenizer)
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SCORES]
    longest = max(map(len, encoded))
    ids = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in encoded]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in encoded]
    data = DataProto.from_dict(
        {"responses": torch.tensor(ids), "response_mask": torch.tensor(mask)},
        {"ground_truth": ["B"] * len(encoded)},
    )
    rewards, metrics = manager.compute_reward(data)
    assert rewards.sum(-1).tolist() == list(SCORES.values()) == metrics["overall"]
    assert metrics["accuracy"] == [1.0, 0.0, 1.0, 0.0]
    last = [len(row) - 1 for row in encoded]
    assert rewards[range(len(last)), last].tolist() == list(SCORES.values())
