"""Whether a run gets on, and whether it has failed, told from the lines that it prints.

A run that hangs prints, too: veRL repeats each minute how many rollouts are pending, Ray and vLLM repeat
their warnings. Progress is a finished rollout or step, or a line unlike all before it, as in a start.
"""

from __future__ import annotations

import re

# Numbers that grow with each finished rollout or step: veRL's and EasyR1's lines of a step, veRL's line of
# its replay buffer, tqdm's bars.
_COUNTS = re.compile(
    rb"\bstep[: ]\s?(?P<step>\d+)\b"
    rb"|\bfinished: (?P<finished>\d+), failure: (?P<failed>\d+)"
    rb"|(?P<done>\d+)/(?:\d+|\?) \[",
    re.IGNORECASE,
)
_FAILED = b"Error executing job with overrides"  # Hydra's words, before the traceback of veRL's main function
_NUMBER = re.compile(rb"[0-9a-f]*\d[0-9a-f]*")  # hexadecimal ones, too


class Progress:
    """Reads the output of a run, in chunks cut anywhere. `failed`: veRL's main function raised an error."""

    def __init__(self) -> None:
        self.failed = False
        self._rest = b""
        self._shapes: set[int] = set()
        self._counts: dict[int, tuple[bytes, ...]] = {}

    def read(self, chunk: bytes) -> bool:
        """Whether this output shows progress."""
        *lines, self._rest = re.split(rb"[\r\n]+", self._rest + chunk)
        self._rest = self._rest[-4096:]
        self.failed = self.failed or any(line.startswith(_FAILED) for line in lines)
        moved = [self._is_progress(line) for line in lines if line.strip()]
        return any(moved)

    def _is_progress(self, line: bytes) -> bool:
        shape = hash(_NUMBER.sub(b"#", line))
        new = shape not in self._shapes
        self._shapes.add(shape)
        found = _COUNTS.search(line)
        if found is None:
            return new
        counts = tuple(count or b"" for count in found.groups())
        place = hash(_NUMBER.sub(b"#", line[: found.start()]))
        moved = self._counts.get(place) != counts
        self._counts[place] = counts
        return moved
