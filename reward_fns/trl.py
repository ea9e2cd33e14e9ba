"""Reward for TRL's `GRPOTrainer` and `RLOOTrainer` (read in 1.16).

    from tpru_verl.reward_fns.trl import tpru_reward
    dataset = dataset.rename_column("right_answer", "answer")  # or solution, ground_truth, label
    trainer = GRPOTrainer(model=model, reward_funcs=tpru_reward, train_dataset=dataset)

Another preset, or a penalty: `functools.partial(tpru_reward, preset="tpru_partial", max_length=1024)`.
TRL's script takes it as `--reward_funcs tpru_verl.reward_fns.trl.tpru_reward`, and from the environment
TPRU_PRESET, TPRU_MAX_LENGTH (in tokens) and TPRU_NGRAM. TRL hands over a conversation without its chat
template: where the template opens `<think>`, say `opened_think=True`, or TPRU_OPENED_THINK=1.

Example:
    >>> response = "<think>The onion is cut last.</think><answer>B</answer>"
    >>> tpru_reward(prompts=["Which comes next?"], completions=[response], answer=["B"])
    [1.0]
"""

from collections.abc import Callable, Sequence

from tpru_verl.reward_fns._rows import chosen, grade_columns


def tpru_reward(
    completions: Sequence[object],
    *,
    preset: str | None = None,
    max_length: int | None = None,
    ngram: int | None = None,
    opened_think: bool | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **columns: object,
) -> list[float | None]:  # TRL's type; None never comes
    """The rewards of completions, texts or lists of messages; logs their mean accuracy and format."""
    grades = grade_columns(completions, columns, opened=opened_think)
    if log_metric is not None and grades:
        log_metric("tpru/accuracy", sum(g.accuracy for g in grades) / len(grades))
        log_metric("tpru/format", sum(g.format for g in grades) / len(grades))
    settings = chosen(preset, max_length, ngram)
    lengths = [None] * len(grades) if completion_ids is None else [len(ids) for ids in completion_ids]
    return [g.score(**settings, length=n) for g, n in zip(grades, lengths, strict=True)]
