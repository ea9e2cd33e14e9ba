"""Reward for TRL's `GRPOTrainer` and `RLOOTrainer` (read in 1.16).

    from tpru_verl.reward_fns.trl import tpru_reward
    dataset = dataset.rename_column("right_answer", "answer")  # or solution, ground_truth, label
    trainer = GRPOTrainer(model=model, reward_funcs=tpru_reward, train_dataset=dataset)

Another preset: `functools.partial(tpru_reward, preset="tpru_partial")`. TRL's script takes it as
`--reward_funcs tpru_verl.reward_fns.trl.tpru_reward`, its preset as TPRU_PRESET in the environment.
"""

from collections.abc import Callable, Sequence

from tpru_verl.reward_fns._rows import chosen_preset, grade_columns


def tpru_reward(
    completions: Sequence[object],
    *,
    preset: str | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **columns: object,
) -> list[float | None]:  # TRL's type; None never comes
    """The rewards of completions, texts or lists of messages; logs their mean accuracy and format."""
    grades = grade_columns(completions, columns)
    if log_metric is not None and grades:
        log_metric("tpru/accuracy", sum(g.accuracy for g in grades) / len(grades))
        log_metric("tpru/format", sum(g.format for g in grades) / len(grades))
    return [g.score(chosen_preset(preset)) for g in grades]
