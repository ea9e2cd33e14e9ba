"""Chooses the wrong frames of a row: they look like the right frame, but a person can tell them from it.

A wrong frame has to differ from every frame that would be right, not only from the one that is shown.

The right frame tends to be the nearest to the given frames, or the farthest from them, and a model could
learn that instead. So the wrong frames are drawn to make each rank of the right frame, by nearness, by
oddness and by size, equally likely over many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tpru_verl.builder.clips import Clip
from tpru_verl.builder.filters import Filters
from tpru_verl.builder.order import comes_back, distances, visible_order
from tpru_verl.builder.pictures import bits_between
from tpru_verl.data.likeness import changes

POOL = 16  # wrong frames to choose from
DRAWS = 64  # sets of wrong frames that are tried
ACROSS = 4  # times --min-change: what frames of two items have to differ by
_COARSE = 2  # pixels of the thumbnail that become one, as in `tpru data audit`

Floats = NDArray[np.float64]


class Ref(NamedTuple):
    """A frame of a clip: number of the file of clips, of the clip in it, of the frame in the clip."""

    file: int
    clip: int
    frame: int


Framed = tuple[Clip, tuple[int, int], int]  # a clip, its place, the number of the frame in it


@dataclass(frozen=True)
class Bench:
    """The frames that a row may show, compared with each other. A frame is named by its place in `refs`."""

    refs: list[Ref]
    hash: NDArray[np.uint8]
    grey: NDArray[np.uint8]
    size: NDArray[np.int64]
    own: int  # how many of them, at the beginning, are from the clip that the row is made of
    shown: int  # how many may be shown; those after them are from earlier clips of the same item
    filters: Filters
    watched: NDArray[np.bool_] | None = None  # the pixels where no clock runs

    @classmethod
    def of(
        cls,
        own: Sequence[Framed],
        foreign: Sequence[Framed],
        earlier: Sequence[Framed],
        filters: Filters,
        watched: NDArray[np.bool_] | None = None,
    ) -> Bench:
        """From frames of the row's own clip, of other items, and of earlier clips of the same item."""
        frames = [*own, *foreign, *earlier]
        return cls(
            [Ref(*place, frame) for _, place, frame in frames],
            np.stack([clip.hash[frame] for clip, _, frame in frames]),
            np.stack([clip.grey[frame] for clip, _, frame in frames]),
            np.array([clip.size[frame] for clip, _, frame in frames]),
            len(own),
            len(own) + len(foreign),
            filters,
            watched,
        )

    @cached_property
    def bits(self) -> Floats:
        """(frames, frames) bits in which hashes differ."""
        return bits_between(self.hash[:, None], self.hash).astype(np.float64)

    @cached_property
    def pixels(self) -> Floats:
        """(frames, frames) mean absolute difference of coarse thumbnails, in grey levels."""
        frames, side = len(self.grey), self.grey.shape[1] // _COARSE
        coarse = self.grey.reshape(frames, side, _COARSE, side, _COARSE).mean((2, 4), dtype=np.float32)
        return np.stack([np.abs(coarse - one).mean((1, 2)) for one in coarse]).astype(np.float64)

    @cached_property
    def apart(self) -> NDArray[np.bool_]:
        """(frames, frames) whether a person can tell the two frames from each other.

        Clocks do not count. Frames of two items have to differ more than neighbours in one clip: screens of
        one app or poses of one robot that hardly differ show the same moment of two takes.
        """
        change = changes(self.grey, self.watched)
        own = np.arange(len(change)) < self.own
        least = np.where(own[:, None] & own, 1.0, ACROSS) * self.filters.min_change
        return (change > 0) & (change >= least) & (self.bits >= self.filters.min_bits)

    @cached_property
    def far(self) -> Floats:
        """(own, frames) how far the pictures of the row's clip are from the others."""
        return distances(self.grey, self.own)

    @cached_property
    def reach(self) -> float:
        """The largest distance from which a frame of another clip is a hard wrong candidate."""
        limit = self.filters.max_foreign
        return limit * float(self.far[:, : self.own].max()) if limit else np.inf

    @cached_property
    def comes_back(self) -> NDArray[np.bool_]:
        """(own,) whether the clip shows what this frame shows a second time, after something else."""
        return comes_back(self.far[:, : self.own])

    @cached_property
    def visible_order(self) -> float:
        """How far the order of the clip's frames is visible in its pictures, 1/3 to 1."""
        return visible_order(self.far[:, : self.own])

    def all_apart(self, places: Sequence[int]) -> bool:
        """Whether no two of these frames look alike."""
        apart = self.apart[np.ix_(places, places)]
        return bool(apart[~np.eye(len(places), dtype=bool)].all())


class Ranks(NamedTuple):
    """The wanted ranks of the right frame: how many wrong frames are nearer, odder or smaller than it."""

    nearness: int  # to the given frames
    to_first: int  # of the given frames
    to_last: int
    oddness: int  # among the candidates
    size: int  # in bytes

    @classmethod
    def drawn(cls, wrong: int, rng: np.random.Generator) -> Ranks:
        return cls(*rng.integers(0, wrong + 1, len(cls._fields)).tolist())


def wrong_frames(
    bench: Bench,
    right: int,
    given: Sequence[int],
    fitting: Sequence[int],
    pool: Sequence[int],
    count: int,
    ranks: Ranks,
    rng: np.random.Generator,
) -> tuple[list[int], float]:
    """Choose `count` frames of `pool`, and a spare one where there is one, and say how far off the ranks are.

    `fitting` are the frames that would be right, too: no frame that looks like one of them is chosen. The
    spare comes last; it replaces the right frame in a row that has no right option. The list is empty when
    too few frames differ from these, from all frames of the row and from each other. The number is the
    distance between `ranks` and the ranks that the right frame has among the chosen frames.
    """
    kept: list[int] = []
    shown = [right, *given, *fitting]
    for frame in pool:
        # Another moment of the clip is near in time. A frame of another clip has to look similar.
        near = frame < bench.own or bench.far[right, frame] <= bench.reach
        if len(kept) < POOL and near and bench.apart[frame, [*shown, *kept]].all():
            kept.append(frame)
    if len(kept) < count:
        return [], np.inf
    size = min(count + 1, len(kept))
    every = list(permutations(kept, size)) if len(kept) <= count + 1 else []
    sets = np.array(every or rng.permuted(np.tile(kept, (DRAWS, 1)), axis=1)[:, :size])
    uneven = _unevenness(bench, right, given, sets[:, :count], ranks)
    best = int(np.argmin(uneven))
    return sets[best].tolist(), float(uneven[best])


def _unevenness(
    bench: Bench, right: int, given: Sequence[int], sets: NDArray[np.int64], ranks: Ranks
) -> Floats:
    """(draws,) distance between `ranks` and the ranks of the right frame in `sets` (draws, frames)."""
    total = np.abs((bench.size[sets] < bench.size[right]).sum(1) - ranks.size).astype(np.float64)
    for between in (bench.pixels, bench.bits):
        for frames, rank, weight in (
            (given, ranks.nearness, 3),
            (given[:1], ranks.to_first, 1),
            (given[-1:], ranks.to_last, 2),
        ):
            distance = between[:, frames].mean(1)
            total += weight * np.abs((distance[sets] < distance[right]).sum(1) - rank)
        to_right = between[right][sets]
        of_wrong = to_right + between[sets[:, :, None], sets[:, None, :]].sum(2)
        total += 4 * np.abs((of_wrong < to_right.sum(1)[:, None]).sum(1) - ranks.oddness)
    return total
