"""Reward for AReaL's `RLVRWorkflow` and `VisionRLVRWorkflow` (read in 1.0.4).

    from tpru_verl.reward_fns.areal import reward_fn
    workflow_kwargs = {"reward_fn": "tpru_verl.reward_fns.areal.reward_fn", ...}
    dataset = dataset.remove_columns("prompt")  # AReaL passes its own

Another preset, or a penalty: `functools.partial(reward_fn, preset="tpru_partial", max_length=1024)`, or
TPRU_PRESET, TPRU_MAX_LENGTH (in tokens) and TPRU_NGRAM in the environment. A prompt that ends with `<think>`
tells that the chat template has opened the reasoning; TPRU_OPENED_THINK=1 tells it where AReaL hands over
messages.

Example:
    >>> response = "<think>The onion is cut last.</think><answer>B</answer>"
    >>> reward_fn("Which comes next?", response, [1, 2], [3, 4], answer="B")
    1.0
"""

from collections.abc import Sequence

from tpru_verl.reward_fns._rows import chosen, grade_row, has_opened_think, without_end


def reward_fn(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    *,
    preset: str | None = None,
    max_length: int | None = None,
    ngram: int | None = None,
    opened_think: bool | None = None,
    **row: object,
) -> float:
    """The reward of a completion against its row's `answer` (or solution, ground_truth, label)."""
    opened = has_opened_think(opened_think, prompt)
    found = grade_row(without_end(completions), {"prompt": prompt, **row}, opened=opened)
    return found.score(**chosen(preset, max_length, ngram), length=len(completion_ids))
