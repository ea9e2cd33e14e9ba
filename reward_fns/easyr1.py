"""Reward for EasyR1 since 2025-06-18 (read in 0.3.2 and its head). Before that: `easyr1_legacy`.

    worker.reward.reward_function=reward_fns/easyr1.py:compute_score
    worker.reward.reward_function_kwargs.preset=tpru

The answer is the data's `answer_key`; task and options never reach a reward of EasyR1.
"""

from collections.abc import Mapping, Sequence
from typing import overload

from tpru_verl.reward_fns._rows import grade_answer

REWARD_NAME = "tpru"
REWARD_TYPE = "batch"

Inputs = Mapping[str, object]
Scores = dict[str, float]


@overload
def compute_score(reward_inputs: Sequence[Inputs], preset: str = "tpru") -> list[Scores]: ...
@overload
def compute_score(reward_inputs: Inputs, preset: str = "tpru") -> Scores: ...
def compute_score(reward_inputs: Sequence[Inputs] | Inputs, preset: str = "tpru") -> list[Scores] | Scores:
    """`overall` (the reward), `accuracy`, `format` and `partial` of a `response` and its `ground_truth`.

    A list of inputs gives a list, one input (reward type `sequential`) its own scores.
    """
    if not isinstance(reward_inputs, Mapping):
        return [compute_score(item, preset) for item in reward_inputs]
    g = grade_answer(reward_inputs.get("response"), reward_inputs.get("ground_truth"), "ground_truth")
    return {"overall": g.score(preset), "accuracy": g.accuracy, "format": g.format, "partial": g.partial}
