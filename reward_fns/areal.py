"""Reward for AReaL's `RLVRWorkflow` and `VisionRLVRWorkflow` (read in 1.0.4).

    from tpru_verl.reward_fns.areal import reward_fn
    workflow_kwargs = {"reward_fn": "tpru_verl.reward_fns.areal.reward_fn", ...}
    dataset = dataset.remove_columns("prompt")  # AReaL passes its own

Another preset: `functools.partial(reward_fn, preset="tpru_partial")`, or TPRU_PRESET in the environment.
"""

from collections.abc import Sequence

from tpru_verl.reward_fns._rows import chosen_preset, grade_row, without_end


def reward_fn(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    *,
    preset: str | None = None,
    **row: object,
) -> float:
    """The reward of a completion against its row's `answer` (or solution, ground_truth, label)."""
    return grade_row(without_end(completions), row).score(chosen_preset(preset))
