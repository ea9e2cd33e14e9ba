"""Reward for EasyR1 since 2025-06-18 (read in 0.3.2 and its head). Before that: `easyr1_legacy`.

    worker.reward.reward_function=reward_fns/easyr1.py:compute_score
    worker.reward.reward_function_kwargs.preset=tpru

Penalties: `reward_function_kwargs.max_length` (in tokens) and `reward_function_kwargs.ngram`. The answer
is the data's `answer_key`; task and options never reach a reward of EasyR1.
"""

from collections.abc import Mapping, Sequence
from typing import overload

from tpru_verl.reward_fns._rows import grade_answer

REWARD_NAME = "tpru"
REWARD_TYPE = "batch"

Inputs = Mapping[str, object]
Scores = dict[str, float]


@overload
def compute_score(
    reward_inputs: Sequence[Inputs],
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
) -> list[Scores]: ...
@overload
def compute_score(
    reward_inputs: Inputs, preset: str = "tpru", max_length: int | None = None, ngram: int | None = None
) -> Scores: ...
def compute_score(
    reward_inputs: Sequence[Inputs] | Inputs,
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
) -> list[Scores] | Scores:
    """`overall` (the reward), `accuracy`, `format` and `partial` of a `response` and its `ground_truth`.

    A list of inputs gives a list, one input (reward type `sequential`) its own scores.
    """
    if not isinstance(reward_inputs, Mapping):
        return [compute_score(item, preset, max_length, ngram) for item in reward_inputs]
    g = grade_answer(reward_inputs.get("response"), reward_inputs.get("ground_truth"), "ground_truth")
    tokens = reward_inputs.get("response_length")
    length = int(tokens) if isinstance(tokens, int | float) else None
    overall = g.score(preset, max_length=max_length, ngram=ngram, length=length)
    return {"overall": overall, "accuracy": g.accuracy, "format": g.format, "partial": g.partial}
