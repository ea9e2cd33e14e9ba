"""Chooses the wrong orders of reordering rows.

The four orders of a row are two pairs of neighbours: in each pair one swap of two frames makes one order of
the other. Any of the four may be the right one, and the same four would have been drawn. So nothing in the
options tells which one is right, and each row has a wrong order that is one swap away, the hardest kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tpru_verl.data.audit.question import Order, swaps
from tpru_verl.terminal import OptionError

LISTED = 4  # orders among the options
_DRAWS = 3000  # sets of orders that are made for a number of steps; a row takes one of them


def farthest(steps: int) -> int:
    """The largest Kendall distance of two orders: that of an order and its reverse."""
    return steps * (steps - 1) // 2


def checked_shares(shares: Mapping[int, float]) -> dict[int, float]:
    """The shares, with a sum of 1. Raises ValueError where they cannot be met."""
    total = sum(shares.values())
    if not shares or min(shares) < 1 or min(shares.values()) < 0 or not total:
        raise OptionError(
            "--order-distances: expected distances from 1 and shares, such as 1=0.34,2=0.33,3=0.33"
        )
    scaled = {distance: share / total for distance, share in shares.items()}
    if scaled.get(1, 0) < 1 / (LISTED - 1) - 1e-9:
        found = f"found a share of {scaled.get(1, 0):.2f} for distance 1"
        least = "one of the three wrong orders is always one swap away"
        raise OptionError(f"--order-distances: {found}, expected at least 0.34: {least}")
    even = sum(share for distance, share in scaled.items() if distance % 2 == 0)
    if not 0.3 <= even <= 0.37:
        found = f"found a share of {even:.2f} for even distances"
        least = "of the three wrong orders, exactly one is an even number of swaps away"
        raise OptionError(f"--order-distances: {found}, expected 0.30 to 0.37: {least}")
    return scaled


@dataclass
class WrongOrders:
    """Draws wrong orders for the rows of one split, so that the shares by Kendall distance are met.

    They are counted in rows that list the right order.

    `shares` is empty for the default: one swap away in a third, the other distances equally often.
    """

    shares: Mapping[int, float]
    made: dict[int, Counter[int]] = field(default_factory=dict)  # by number of steps

    def draw(self, right: Order, rng: np.random.Generator, *, listed: bool, chained: bool) -> list[Order]:
        """The wrong orders of a row, in random order: one less where the right one is `listed`, too.

        An order stands beside its exact reverse only where the frames are a chain of nearest pictures
        (`chained`): the chain gives the order away but for its direction, so direction is what is asked.
        (Of three frames, no four orders are without a reverse.)
        """
        last = farthest(len(right))
        made = self.made.setdefault(len(right), Counter())
        lacks = self._lacks(last, made)
        mirrored = len(right) == 3 or (chained and (not self.shares or lacks.get(last, -1) > 0))
        sets, across = _sets(len(right), mirrored)
        if listed:  # all four count alike, because any of them might be the right one
            lack = np.array([lacks.get(distance, -float(LISTED)) for distance in range(last + 1)])
            score = lack[across].sum(1)
            place = rng.choice(np.flatnonzero(score >= score.max() - 1e-9))
            best = [tuple(right[i] for i in order) for order in sets[place].tolist()]
        else:
            first, best = _swapped(right, rng), [right]
            while right in best:
                best = [tuple(first[i] for i in order) for order in sets[rng.integers(len(sets))].tolist()]
        wrong = [order for order in best if order != right]
        if listed:
            made.update(swaps(right, order) for order in wrong)
        return [wrong[i] for i in rng.permutation(len(wrong))]

    def _lacks(self, last: int, made: Counter[int]) -> dict[int, float]:
        """By how many orders each distance is behind its share."""
        shares = {distance: share for distance, share in self.shares.items() if distance <= last}
        if not shares:
            others = range(2, last)
            shares = {1: 1 / (LISTED - 1)} | dict.fromkeys(
                others, (1 - 1 / (LISTED - 1)) / max(1, len(others))
            )
        total = sum(made.values()) + LISTED
        whole = sum(shares.values())
        return {distance: share / whole * total - made[distance] for distance, share in shares.items()}


@lru_cache(maxsize=16)
def _sets(steps: int, mirrored: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(sets, LISTED, steps) orders, 0, 1, 2, ... the first, and (sets, 4) distances between their pairs.

    Names of the frames do not matter to distances, so a row's set is one of these with other names.
    """
    rng, first = np.random.default_rng(0), tuple(range(steps))
    found: dict[frozenset[Order], tuple[tuple[Order, ...], list[int]]] = {}
    for _ in range(_DRAWS):
        orders = _mirrored(first, rng) if mirrored else _walked(first, rng)
        across = [swaps(one, other) for one in orders[:2] for other in orders[2:]]
        if len({*orders}) == LISTED and (mirrored or farthest(steps) not in across):
            found.setdefault(frozenset(orders), (orders, across))
    sets, distances = zip(*found.values(), strict=True)
    return np.array(sets), np.array(distances)


def _swapped(order: Order, rng: np.random.Generator) -> Order:
    place = int(rng.integers(len(order) - 1))
    return (*order[:place], order[place + 1], order[place], *order[place + 2 :])


def _walked(order: Order, rng: np.random.Generator) -> tuple[Order, ...]:
    """Two pairs of neighbours, some random swaps apart. From each of the four the draw is equally likely."""
    beside = _swapped(order, rng)
    other = (order, beside)[int(rng.integers(2))]
    for _ in range(int(rng.integers(1, 2 * farthest(len(order))))):
        other = _swapped(other, rng)
    return order, beside, other, _swapped(other, rng)


def _mirrored(order: Order, rng: np.random.Generator) -> tuple[Order, ...]:
    """Two neighbours and the reverse of each."""
    beside = _swapped(order, rng)
    return order, beside, order[::-1], beside[::-1]
