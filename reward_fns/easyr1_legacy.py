"""Reward for EasyR1 before 2025-06-18, which the published TPRU contains (read in its `bee33c4`).

    worker.reward.reward_type=batch
    worker.reward.reward_function=reward_fns/easyr1_legacy.py:compute_score
    worker.reward.reward_function_kwargs.preset=tpru

Penalties: `reward_function_kwargs.max_length` (in characters) and `reward_function_kwargs.ngram`. The
answer is the data's `answer_key`; task and options never reach a reward of EasyR1.
"""

from typing import overload

from tpru_verl.reward_fns._rows import grade_answer

Scores = dict[str, float]


@overload
def compute_score(
    predicts: list[str],
    ground_truths: list[str],
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
) -> list[Scores]: ...
@overload
def compute_score(
    predicts: str,
    ground_truths: str,
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
) -> Scores: ...
def compute_score(
    predicts: list[str] | str,
    ground_truths: list[str] | str,
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
) -> list[Scores] | Scores:
    """`overall` (the reward), `accuracy`, `format` and `partial` of responses and their right answers.

    Two lists give a list, two texts (reward type `sequential`) the scores of one.
    """
    if not isinstance(predicts, str):
        if len(predicts) != len(ground_truths):
            raise ValueError(f"ground_truths: found {len(ground_truths)} for {len(predicts)} predicts")
        pairs = zip(predicts, ground_truths, strict=True)
        return [compute_score(predict, truth, preset, max_length, ngram) for predict, truth in pairs]
    g = grade_answer(predicts, ground_truths, "ground_truths")
    overall = g.score(preset, max_length=max_length, ngram=ngram)
    return {"overall": overall, "accuracy": g.accuracy, "format": g.format, "partial": g.partial}
