"""Reward for veRL: `reward.custom_reward_function.path=pkg://tpru_verl.reward_fns.verl`."""

from collections.abc import Mapping

from tpru_verl.grading import grade


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, object] | None = None,
    preset: str = "tpru",
    **_: object,
) -> dict[str, float]:
    """`score` (the reward), `acc`, `format`, `partial` and `parsed` (1.0 when an answer was found).

    Always the same keys: veRL stops a run whose samples differ in them.
    """
    info = extra_info or {}
    task, options = info.get("task"), info.get("options")
    known = (
        {str(k): str(v) for k, v in options.items() if v is not None}
        if isinstance(options, Mapping)
        else None
    )
    result = grade(solution_str, ground_truth, task=str(task) if task else None, options=known or None)
    return {
        "score": result.score(preset),
        "acc": result.accuracy,
        "format": result.format,
        "partial": result.partial,
        "parsed": float(result.parsed is not None),
    }
