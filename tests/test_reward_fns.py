"""Each reward function under its framework's own contract."""

import asyncio
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from tpru_verl.reward_fns import easyr1
from tpru_verl.reward_fns.verl import compute_score
from tpru_verl.sample import Task

RIGHT, WRONG = "<think>x</think><answer>B</answer>", "<think>x</think><answer>A</answer>"
NONSENSE = "I see a dog."
KEYS = {"score", "acc", "format", "partial", "parsed"}


@pytest.mark.parametrize("response", [RIGHT, WRONG, NONSENSE, ""])
@pytest.mark.parametrize(
    "info", [None, {}, {"task": "", "options": None}, {"options": {"A": "x", "B": None}}]
)
def test_verl_always_the_same_keys_and_floats(response: str, info: dict[str, object] | None) -> None:
    result = compute_score("tpru/x", response, "B", info, num_turns=2)
    assert set(result) == KEYS
    assert all(type(value) is float for value in result.values())


def test_verl_scores_and_presets() -> None:
    info = {"task": Task.NEXT_FRAME_PREDICTION.value, "options": {"A": "<image>", "B": "<image>"}}
    assert compute_score("", RIGHT, "B", info)["score"] == 1.0
    assert compute_score("", RIGHT, "B", info, preset="paper")["score"] == pytest.approx(0.92)
    assert compute_score("", WRONG, "B", info)["score"] == 0.125
    assert compute_score("", NONSENSE, "B", info) == dict.fromkeys(KEYS, 0.0)
    with pytest.raises(ValueError, match="preset: found 'x'"):
        compute_score("", RIGHT, "B", preset="x")


def test_verl_options_reach_the_grader() -> None:
    response = "<think>x</think><answer>a red ball</answer>"
    assert compute_score("", response, "B")["acc"] == 0.0
    assert compute_score("", response, "B", {"options": {"A": "x", "B": "a red ball"}})["acc"] == 1.0


def test_easyr1_batch() -> None:
    rows = [{"response": r, "response_length": 9, "ground_truth": "B"} for r in (RIGHT, WRONG, NONSENSE)]
    results = easyr1.compute_score(cast("list[dict[str, str]]", rows))
    assert easyr1.REWARD_TYPE == "batch"
    assert [result["overall"] for result in results] == [1.0, 0.125, 0.0]
    assert all(type(value) is float for result in results for value in result.values())
    assert [set(result) for result in results] == [{"overall", "accuracy", "format", "partial"}] * 3
    assert easyr1.compute_score(cast("list[dict[str, str]]", rows[:1]), preset="paper")[0]["overall"] == 0.92


@pytest.mark.parametrize("manager", ["naive", "dapo"])
def test_through_verls_reward_loop(checkpoint: Path, manager: str) -> None:
    """The function is found by its `pkg://` path and called by the worker that training uses."""
    pytest.importorskip("verl")
    import torch
    from hydra import compose, initialize_config_module
    from verl import DataProto
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            [
                f"actor_rollout_ref.model.path={checkpoint}",
                f"reward.reward_manager.name={manager}",
                "reward.custom_reward_function.path=pkg://tpru_verl.reward_fns.verl",
                "reward.custom_reward_function.name=compute_score",
                "+reward.custom_reward_function.reward_kwargs.preset=tpru",
            ],
        )

    async def score() -> list[dict]:
        worker = RewardLoopWorker(config)
        encoded = [worker.input_tokenizer.encode(text) for text in (RIGHT, WRONG)]
        length = max(map(len, encoded))
        padded = torch.tensor(
            [ids + [worker.input_tokenizer.pad_token_id] * (length - len(ids)) for ids in encoded]
        )
        mask = torch.tensor([[1] * (2 + len(ids)) + [0] * (length - len(ids)) for ids in encoded])
        data = DataProto.from_dict(
            {"prompts": torch.ones(2, 2, dtype=torch.long), "responses": padded, "attention_mask": mask},
            {
                "data_source": np.array([Task.NEXT_FRAME_PREDICTION.data_source] * 2, dtype=object),
                "reward_model": np.array([{"style": "rule", "ground_truth": "B"}] * 2, dtype=object),
                "extra_info": np.array([{"options": {"A": "<image>", "B": "<image>"}}, {}], dtype=object),
            },
        )
        return await worker.compute_score_batch(data)

    results = asyncio.run(score())
    assert [result["reward_score"] for result in results] == [1.0, 0.125]
    assert {"acc", "score"} <= set(results[0]["reward_extra_info"])
