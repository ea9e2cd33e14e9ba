"""The verdict on a response, by the rules of `tpru_verl.grading`: right, wrong or unreadable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from tpru_verl.eval.item import Item
from tpru_verl.grading import grade


@dataclass(frozen=True)
class Verdict:
    """`parsed` is the answer, None if unreadable; `format` tells whether the response has `tpru`'s form."""

    parsed: str | None
    correct: bool
    format: bool


def judge(item: Item, response: str, *, cut_off: bool = False) -> Verdict:
    """The verdict on one response.

    An answer in `<answer>` counts as in training. A response without that tag, as other prompts ask for
    it, is read by the grader's rules for untagged responses: as a whole, else by its last or first line.
    `cut_off`: it was not complete, so that its lines are no answer.
    """
    options = {**item.options, **{text: text for text in item.accepted}}
    complete = not cut_off or "\n" not in response.strip()
    found = grade(response, item.answer, options=options or None, untagged=complete)
    return Verdict(found.parsed, found.accuracy == 1, found.format == 1)


def majority(parsed: Sequence[str | None]) -> str | None:
    """The most frequent answer; None if no answer could be read, or if several are equally frequent."""
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
