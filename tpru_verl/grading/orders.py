"""How much of an order an answer keeps: measures in [0, 1]."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

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
