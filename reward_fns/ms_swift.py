"""Reward for ms-swift (read in 4.6): a plugin that adds the reward function `tpru`.

    export TPRU_PRESET=tpru
    swift rlhf --rlhf_type grpo ... --reward_funcs tpru \\
      --external_plugins "$(python -c 'import tpru_verl.reward_fns.ms_swift as m; print(m.__file__)')"

The answer is the first of the columns answer, solution, ground_truth and label. Swift takes a column
`answer` for the response of the model: `tpru data prepare --for ms-swift` writes `solution`. Penalties:
TPRU_MAX_LENGTH (in characters) and TPRU_NGRAM. TPRU_OPENED_THINK=1 tells that the chat template opens
`<think>`.

Example:
    >>> reward = TPRU()
    >>> reward(["<think>The onion is cut last.</think><answer>B</answer>"], solution=["B"])
    [1.0]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tpru_verl.reward_fns._rows import chosen, grade_columns


class TPRU:
    """An `ORM` without its base class: swift makes one and calls it with completions and columns."""

    def __init__(self, args: object = None, **_: object) -> None:
        self.args = args

    def __call__(self, completions: Sequence[object], **columns: object) -> list[float]:
        return [g.score(**chosen()) for g in grade_columns(completions, columns)]


def _register() -> None:
    """Adds `tpru` to swift's reward functions, and takes this folder off the path.

    Swift 4.6 puts a plugin's folder first in `sys.path`, where our `trl.py` would hide TRL.
    """
    from swift.rewards import orms  # pyright: ignore[reportMissingImports]

    orms["tpru"] = TPRU
    here = str(Path(__file__).parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]


if "swift" in sys.modules:
    _register()
