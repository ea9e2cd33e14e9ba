"""Reward for veRL (0.7.0 and later; tested with 0.7.0, 0.8.0, 0.9.0 and 0.9.1).

    reward.custom_reward_function.path=pkg://tpru_verl.reward_fns.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.preset=tpru

veRL 0.7.0 has these keys without `reward.`: `custom_reward_function.path=...`.

Task and options come from `extra_info`, and so does `opened_think`, which `TPRUDataset` sets where the
model's chat template opens `<think>`; with another data set, set `+...reward_kwargs.opened_think=true`.
Penalties: `+...reward_kwargs.max_length=2000` (in characters: veRL hands over no tokens, which its own
`reward.reward_manager.name=dapo` counts) and `+...reward_kwargs.ngram=4`.

Example:
    >>> response = "<think>The onion is cut last.</think><answer>B</answer>"
    >>> info = {"options": {"A": "<image>", "B": "<image>"}}
    >>> compute_score("tpru/next_frame_prediction", response, "B", info)
    {'score': 1.0, 'acc': 1.0, 'format': 1.0, 'partial': 1.0, 'parsed': 1.0}
"""

from collections.abc import Mapping

from tpru_verl.reward_fns._rows import grade_answer, has_opened_think


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: object = None,
    preset: str = "tpru",
    max_length: int | None = None,
    ngram: int | None = None,
    opened_think: bool | None = None,
    **_: object,
) -> dict[str, float]:
    """`score` (the reward), `acc`, `format`, `partial` and `parsed` (1.0 when an answer was found).

    Always the same keys: veRL stops a run whose samples differ in them. Raises ValueError where the ground
    truth is missing or cannot be read.
    """
    told = extra_info.get("opened_think") if isinstance(extra_info, Mapping) else None
    opened = has_opened_think(told if opened_think is None else opened_think)
    result = grade_answer(solution_str, ground_truth, "ground_truth", extra_info, opened=opened)
    return {
        "score": result.score(preset, max_length=max_length, ngram=ngram),
        "acc": result.accuracy,
        "format": result.format,
        "partial": result.partial,
        "parsed": float(result.parsed is not None),
    }
