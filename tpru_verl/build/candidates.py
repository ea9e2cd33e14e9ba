"""Wrong frames that are hard, yet wrong: near the right one, distinguishable from it, and no odd one out.

The frame that fits is by its nature the nearest to its neighbours, or the farthest. Wrong ones are therefore
drawn such that the place of the right one, by nearness, by oddness and by size, is even over many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tpru_verl.build.clips import Clip
from tpru_verl.build.filters import Filters, bits_between, change_between

POOL = 20  # wrong frames among which the choice is made
DRAWS = 96  # sets of them that are tried
_COARSE = 2  # pixels of the thumbnail that are averaged: as coarse as `tpru data audit` looks

Floats = NDArray[np.float64]


class Ref(NamedTuple):
    """A frame of a clip: number of the file of clips, of the clip in it, of the frame in the clip."""

    file: int
    clip: int
    frame: int


@dataclass(frozen=True)
class Candidate:
    """A frame that is seen in a row, with what is compared of it."""

    ref: Ref
    hash: NDArray[np.uint8]
    grey: NDArray[np.uint8]
    size: int

    @classmethod
    def of(cls, clip: Clip, place: tuple[int, int], frame: int) -> Candidate:
        return cls(Ref(*place, frame), clip.hash[frame], clip.grey[frame], clip.size[frame])


def tell_apart(one: Candidate, others: Sequence[Candidate], filters: Filters) -> bool:
    """Whether a person can tell `one` from each of `others`."""
    if not others:
        return True
    bits = bits_between(one.hash, np.stack([other.hash for other in others]))
    change = change_between(one.grey, np.stack([other.grey for other in others]))
    return bool((bits >= filters.min_bits).all() and (change >= filters.min_change).all())


def wrong_frames(
    right: Candidate,
    given: Sequence[Candidate],
    pool: Sequence[Candidate],
    count: int,
    filters: Filters,
    rng: np.random.Generator,
) -> list[Candidate]:
    """`count` frames of `pool`, or one more where there is one: a spare for rows without a right choice.

    Fewer than `count` when too few differ from what the row shows and from each other. The spare comes last.
    """
    kept: list[Candidate] = []
    shown = [right, *given]
    for candidate in pool:
        near = bits_between(right.hash, candidate.hash) <= filters.max_bits
        if len(kept) < POOL and near and tell_apart(candidate, [*shown, *kept], filters):
            kept.append(candidate)
    if len(kept) <= count:
        return kept
    sets = np.stack([rng.permutation(len(kept))[: count + 1] for _ in range(DRAWS)])
    best = int(np.argmin(_unevenness(right, given, kept, sets[:, :count], rng)))
    return [kept[i] for i in sets[best]]


def _unevenness(
    right: Candidate,
    given: Sequence[Candidate],
    pool: Sequence[Candidate],
    sets: NDArray[np.int64],
    rng: np.random.Generator,
) -> Floats:
    """(draws,) how far the right frame's rank in each set of wrong ones is from ranks drawn evenly.

    `sets` has a line of places in `pool` for each draw.
    """
    wrong = sets.shape[1]
    total = np.zeros(len(sets))
    nearness, oddness, size = (int(rank) for rank in rng.integers(0, wrong + 1, 3))
    for between in (_pixels, _bits):
        to_given = between([right, *pool], given)  # (1 + pool, given)
        for distance, weight in ((to_given.mean(1), 4), (to_given[:, 0], 1), (to_given[:, -1], 1)):
            total += weight * np.abs((distance[1:][sets] < distance[0]).sum(1) - nearness)
        among = between(pool, pool)
        to_right = between(pool, [right])[:, 0]
        of_right = to_right[sets].sum(1)
        of_wrong = to_right[sets] + among[sets[:, :, None], sets[:, None, :]].sum(2)
        total += 2 * np.abs((of_wrong < of_right[:, None]).sum(1) - oddness)
    sizes = np.array([candidate.size for candidate in pool])
    return total + np.abs((sizes[sets] < right.size).sum(1) - size)


def _pixels(some: Sequence[Candidate], others: Sequence[Candidate]) -> Floats:
    """(some, others) mean absolute difference of coarse thumbnails, in grey levels."""
    a, b = (_coarse(np.stack([candidate.grey for candidate in each])) for each in (some, others))
    return np.abs(a[:, None] - b).mean(2)


def _coarse(grey: NDArray[np.uint8]) -> Floats:
    n, side = len(grey), grey.shape[1] // _COARSE
    return grey.reshape(n, side, _COARSE, side, _COARSE).mean((2, 4)).reshape(n, -1)


def _bits(some: Sequence[Candidate], others: Sequence[Candidate]) -> Floats:
    a, b = (np.stack([candidate.hash for candidate in each]) for each in (some, others))
    return bits_between(a[:, None], b).astype(np.float64)
