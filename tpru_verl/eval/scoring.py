"""What one response is worth, by `tpru_verl.grading`: right, wrong or not to be read, and never by chance."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from tpru_verl.eval.item import Item
from tpru_verl.grading import grade

_TAG = re.compile(r"</?answer>")
_LAST = re.compile(
    r"\W*(?:so|therefore|thus|hence)?\W*(?:the|my)?\s*(?:final|correct|best|right)?\s*(?:answer|option|choice)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """`parsed` is the answer as read, None when it cannot be; `format` whether it has the form of `tpru`."""

    parsed: str | None
    correct: bool
    format: bool


def judge(item: Item, response: str) -> Verdict:
    """The verdict on one response.

    An answer in `<answer>` counts as in training. A response without that tag, as other prompts ask for
    it, is read whole, without its reasoning; failing that its last line, if that says to be the answer.
    """
    found = grade(response, item.answer, options=_options(item))
    well_formed = found.format == 1
    if not _TAG.search(response):
        said = response.rpartition("</think>")[2].strip()
        for text in (said, _last_line(said)):
            if found.parsed is None and text and "<think>" not in text:
                found = grade(f"<answer>{text}</answer>", item.answer, options=_options(item))
    return Verdict(found.parsed, found.accuracy == 1, well_formed)


def _options(item: Item) -> dict[str, str] | None:
    options = {**item.options, **{text: text for text in item.accepted}}
    return options or None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if len(lines) > 1 and _LAST.match(lines[-1]) else ""


def majority(parsed: Sequence[str | None]) -> str | None:
    """The answer given most often; None where none was read, or several lead: no draw decides."""
    votes = Counter(answer for answer in parsed if answer is not None).most_common(2)
    if not votes or (len(votes) == 2 and votes[0][1] == votes[1][1]):
        return None
    return votes[0][0]


def pass_at(k: int, right: int, n: int) -> float:
    """Unbiased chance that one of k responses is right, of n that were drawn (Chen et al. 2021, eq. 1).

    Raises ValueError unless 0 <= right <= n and 1 <= k <= n.
    """
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"k, right, n: found {k}, {right}, {n}, expected 0 <= right <= n and 1 <= k <= n")
    return 1 - comb(n - right, k) / comb(n, k)
