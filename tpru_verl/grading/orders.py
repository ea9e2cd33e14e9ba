"""Orders: how an order is written, and how much of it an answer keeps."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from string import ascii_uppercase

__all__ = ["MEASURES", "NUMBER_WORDS", "counts_up", "order_credit", "order_of"]

MEASURES = ("exact", "positions", "kendall", "lis", "adjacent")


def order_credit(predicted: Sequence[str], truth: Sequence[str], measure: str = "kendall") -> float:
    """How much of the order `truth` is kept in `predicted`, in [0, 1]; 1 if and only if they are equal.

    0 where `predicted` does not hold each label of `truth` exactly once. Raises ValueError for an
    unknown measure. Below, n is the number of labels, and chance the mean over all n! orders, in
    brackets its value for n = 4.

    - `exact`: 1 or 0. Chance 1/n! (1/24).
    - `positions`: share of the labels that stand in their place. Chance 1/n (1/4).
    - `kendall`: share of the n(n-1)/2 pairs that stand in the right order, which is (tau + 1)/2.
      Chance 1/2. M. G. Kendall, "A New Measure of Rank Correlation", Biometrika 30 (1938); for orders
      of sentences M. Lapata, Computational Linguistics 32 (2006).
    - `lis`: (L - 1)/(n - 1), L the length of the longest increasing subsequence, the most labels that
      stand in the right order, if with others between them; n - L is Ulam's distance. Chance for n = 4:
      17/36. C. Schensted, "Longest Increasing and Decreasing Subsequences", Canad. J. Math. 13 (1961).
    - `adjacent`: share of the n - 1 neighbours in `truth` that are neighbours, in the same order, in
      `predicted`: those that are no breakpoint. Chance 1/n (1/4). G. Watterson et al., "The Chromosome
      Inversion Problem", J. Theor. Biol. 99 (1982).

    Exchanging two neighbours in `predicted` that stand in the wrong order never lowers `exact`,
    `kendall` (which it raises by one pair) and `lis`; `kendall` also rises when the two are no
    neighbours. `positions` and `adjacent` are not monotone: 4 1 2 3 keeps two pairs of neighbours,
    1 4 2 3 one.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure: found {measure!r}, expected one of {', '.join(MEASURES)}")
    if list(predicted) == list(truth):
        return 1.0
    place = {label: i for i, label in enumerate(truth)}
    n = len(truth)
    if measure == "exact" or len(predicted) != n or len(place) != n or set(predicted) != set(place):
        return 0.0
    ranks = [place[label] for label in predicted]
    if measure == "positions":
        return sum(i == rank for i, rank in enumerate(ranks)) / n
    if measure == "kendall":
        return sum(a < b for i, a in enumerate(ranks) for b in ranks[i + 1 :]) / (n * (n - 1) // 2)
    if measure == "lis":
        return (_longest_increasing(ranks) - 1) / (n - 1)
    return sum(b == a + 1 for a, b in pairwise(ranks)) / (n - 1)


def _longest_increasing(ranks: Sequence[int]) -> int:
    tails: list[int] = []  # the least rank that ends an increasing subsequence of each length
    for rank in ranks:
        at = bisect_left(tails, rank)
        tails[at : at + 1] = [rank]
    return len(tails)


_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
NUMBER_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS, start=1)}
_PLACES = {word: place for place, word in enumerate(_ORDINALS, start=1)}
_FILLER = re.compile(  # words of an order that are no label
    r"(?<![a-z])(?:(?:image|frame|photo|picture|panel|step)s?|the|and|then|next|after\s+that"
    r"|followed\s+by|comes?|is|\\(?:rightarrow|to|lt|gt))(?![a-z])"
    r"|\u56fe\u7247|\u56fe\u50cf|\u56fe|\u5e27|\u7136\u540e|\u63a5\u7740|\u9996\u5148|\u518d|\u7b2c|\u5f20",
    re.IGNORECASE,
)
_LAST = re.compile(r"(?<![a-z])(?:finally|last(?:ly)?)(?![a-z])|\u6700\u540e", re.IGNORECASE)
_ORDINAL_ENDING = re.compile(r"(?<=\d)(?:st|nd|rd|th)(?![a-z])", re.IGNORECASE)
_LIST_MARK = re.compile(  # "1. ", "(1) ", "Step 1: "
    r"(?<![^\s,;])(?:(?:step|position|place)\s?(\d{1,2})\s?[.):]?|\(?(\d{1,2})[.)])\s+(?=\S)", re.IGNORECASE
)
_BETWEEN = ",;-><&\u2192\u27f6\u21d2\u2794\u279c\u2013\u2014=#\u3001()[]{}"
_SEPARATORS = str.maketrans(dict.fromkeys(_BETWEEN, " "))
_SLASHES = re.compile(r"\s*\d+(?:\s*/\s*\d+){2,}\s*")  # of two labels, a slash may be an alternative
_FOREIGN = re.compile(rf"[^\w\s\\{re.escape(_BETWEEN)}]")  # a character that no order has


def order_of(text: str) -> tuple[str, ...] | None:
    """The labels of the order that a short text gives, or None.

    An order is two or more labels, each once: numbers (`4 2 3 1`, `4231`, `image 4 -> image 2`,
    `first 4, then 2`, `4th, 2nd`, `four two`) or letters (`CABD`). A numbered list (`1. Image 4`) gives
    the labels of its lines.
    """
    marks = [int(a or b) for a, b in _LIST_MARK.findall(text)] if "1" in text or not text.isascii() else []
    if len(marks) > 1 and marks == list(range(1, len(marks) + 1)):
        listed = _labels(_LIST_MARK.sub(" ", text))
        if listed and len(listed) == len(marks):
            return listed
    return _labels(text)


def _labels(text: str) -> tuple[str, ...] | None:
    if "/" in text and _SLASHES.fullmatch(text):
        text = text.replace("/", " ")
    if _FOREIGN.search(text):  # most texts are no order, and end here
        return None
    text = _ORDINAL_ENDING.sub("", _FILLER.sub(" ", text))
    words = _LAST.sub(" last ", text).translate(_SEPARATORS).casefold().split()
    if "last" in words:  # beside the last label: "last 1", "1 last"
        at = words.index("last")
        final = [word for word in words[at:] if word != "last"]
        if len(final) > 1:
            return None
        words = words[:at] + final
    places = [_PLACES[word] for word in words if word in _PLACES]
    labels = [NUMBER_WORDS.get(word, word) for word in words if word not in _PLACES]
    if places and not labels:
        labels = [str(place) for place in places]
    elif places != list(
        range(1, len(places) + 1)
    ):  # "first 4, second 2" counts, "second 2, first 4" does not
        return None
    joined = "".join(labels)
    if not joined.isascii() or not (joined.isdigit() or joined.isalpha()):
        return None
    if len(words) == 1 and labels == words:
        labels = list(joined)
    elif joined.isalpha() and len(joined) != len(labels):
        return None
    return tuple(map(str.upper, labels)) if len(labels) > 1 and len(set(labels)) == len(labels) else None


def counts_up(labels: Sequence[str]) -> bool:
    """Whether the labels are 1..n, 0..n-1 or A..; `STOP` and `POTS` are two buttons, not two orders."""
    numbers = [str(i) for i in range(len(labels) + 1)]
    return set(labels) in (set(numbers[1:]), set(numbers[:-1]), set(ascii_uppercase[: len(labels)]))
