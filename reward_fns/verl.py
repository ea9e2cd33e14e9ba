"""Reward for veRL (0.5 and later; read in 0.9.1).

    reward.custom_reward_function.path=pkg://tpru_verl.reward_fns.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.preset=tpru

Task and options come from `extra_info`. Penalties: `+...reward_kwargs.max_length=2000` (in characters: veRL
hands over no tokens, which its own `reward.reward_manager.name=dapo` counts) and `+...reward_kwargs.ngram=4`.
"""

from tpru_verl.reward_fns._rows import grade_answer


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: object = None,
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
    **_: object,
) -> dict[str, float]:
    """`score` (the reward), `acc`, `format`, `partial` and `parsed` (1.0 when an answer was found).

    Always the same keys: veRL stops a run whose samples differ in them.
    """
    result = grade_answer(solution_str, ground_truth, "ground_truth", extra_info)
    return {
        "score": result.score(preset, max_length=max_length, ngram=ngram),
        "acc": result.accuracy,
        "format": result.format,
        "partial": result.partial,
        "parsed": float(result.parsed is not None),
    }
