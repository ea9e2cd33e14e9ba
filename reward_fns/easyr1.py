"""Reward for EasyR1 since 2025-06-18 (read in 0.3.2 and its head). Before that: `easyr1_legacy`.

    worker.reward.reward_function=reward_fns/easyr1.py:compute_score
    worker.reward.reward_function_kwargs.preset=tpru

Penalties: `reward_function_kwargs.max_length` (in tokens) and `reward_function_kwargs.ngram`. The answer
is the data's `answer_key`; EasyR1 hands neither task nor options to a reward. Where the model's chat template
opens `<think>`, set `reward_function_kwargs.opened_think=true`: EasyR1 hands over no prompt either.

Example:
    >>> response = "<think>The onion is cut last.</think><answer>B</answer>"
    >>> compute_score([{"response": response, "response_length": 21, "ground_truth": "B"}])
    [{'overall': 1.0, 'accuracy': 1.0, 'format': 1.0, 'partial': 1.0}]
"""

from collections.abc import Mapping, Sequence
from typing import overload

from tpru_verl.reward_fns._rows import grade_answer, has_opened_think

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
    opened_think: bool | None = None,
) -> list[Scores]: ...
@overload
def compute_score(
    reward_inputs: Inputs,
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
    opened_think: bool | None = None,
) -> Scores: ...
def compute_score(
    reward_inputs: Sequence[Inputs] | Inputs,
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
    opened_think: bool | None = None,
) -> list[Scores] | Scores:
    """`overall` (the reward), `accuracy`, `format` and `partial` of a `response` and its `ground_truth`.

    A list of inputs gives a list, one input (reward type `sequential`) its own scores. Raises ValueError
    where a ground truth is missing or cannot be read.
    """
    opened = has_opened_think(opened_think)

    def scored(item: Inputs, column: str) -> Scores:
        g = grade_answer(item.get("response"), item.get("ground_truth"), column, opened=opened)
        tokens = item.get("response_length")
        length = int(tokens) if isinstance(tokens, int | float) else None
        overall = g.score(preset, max_length=max_length, ngram=ngram, length=length)
        return {"overall": overall, "accuracy": g.accuracy, "format": g.format, "partial": g.partial}

    if isinstance(reward_inputs, Mapping):
        return scored(reward_inputs, "ground_truth")
    return [scored(item, f"row {i} of the batch, ground_truth") for i, item in enumerate(reward_inputs)]
