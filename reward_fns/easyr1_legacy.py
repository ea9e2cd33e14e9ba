"""Reward for EasyR1 before 2025-06-18, which the published TPRU contains (read in its `bee33c4`).

    worker.reward.reward_type=batch
    worker.reward.reward_function=reward_fns/easyr1_legacy.py:compute_score
    worker.reward.reward_function_kwargs.preset=tpru

Penalties: `reward_function_kwargs.max_length` (in characters) and `reward_function_kwargs.ngram`. The
answer is the data's `answer_key`; EasyR1 hands neither task nor options to a reward. Where the model's chat
template opens `<think>`, set `reward_function_kwargs.opened_think=true`.

Example:
    >>> compute_score(["<think>The onion is cut last.</think><answer>B</answer>"], ["B"])
    [{'overall': 1.0, 'accuracy': 1.0, 'format': 1.0, 'partial': 1.0}]
"""

from typing import overload

from tpru_verl.reward_fns._rows import grade_answer, has_opened_think

Scores = dict[str, float]


@overload
def compute_score(
    predicts: list[str],
    ground_truths: list[str],
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
    opened_think: bool | None = None,
) -> list[Scores]: ...
@overload
def compute_score(
    predicts: str,
    ground_truths: str,
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
    opened_think: bool | None = None,
) -> Scores: ...
def compute_score(
    predicts: list[str] | str,
    ground_truths: list[str] | str,
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
    opened_think: bool | None = None,
) -> list[Scores] | Scores:
    """`overall` (the reward), `accuracy`, `format` and `partial` of responses and their right answers.

    Two lists give a list, two texts (reward type `sequential`) the scores of one. Raises ValueError where
    a ground truth is missing or cannot be read.
    """
    opened = has_opened_think(opened_think)

    def scored(predict: str, truth: object, column: str) -> Scores:
        g = grade_answer(predict, truth, column, opened=opened)
        overall = g.score(preset, max_length=max_length, ngram=ngram)
        return {"overall": overall, "accuracy": g.accuracy, "format": g.format, "partial": g.partial}

    if isinstance(predicts, str):
        return scored(predicts, ground_truths, "ground_truths")
    if len(predicts) != len(ground_truths):
        raise ValueError(f"ground_truths: found {len(ground_truths)} for {len(predicts)} predicts")
    pairs = enumerate(zip(predicts, ground_truths, strict=True))
    return [scored(predict, truth, f"row {i} of the batch, ground_truths") for i, (predict, truth) in pairs]
