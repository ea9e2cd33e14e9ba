"""How far the order of a clip's frames is visible in its pictures.

Pictures alone tell an order where neighbours look more alike than distant frames. Juggling, waves and crowds
look alike all the time, a pendulum comes back: nobody can order their frames.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tpru_verl.builder.clips import GREY, read_clip

CHANCE = 1 / 3  # of three frames, how often the outer two differ most where there is no order
_RETURN = 0.5  # a frame comes back when a later one is this much nearer to it than its neighbours are

Floats = NDArray[np.float64]


def distances(grey: NDArray[np.uint8], first: int | None = None) -> Floats:
    """(first, frames) distances of thumbnails (frames, GREY, GREY), in grey levels; `first` is all of them.

    The mean absolute differences at five scales are added, each weighted by the side of its cells. This
    comes near to the earth mover's distance (Shirdhonkar and Jacobs 2008): a thing that moves on gets farther
    and farther away, where plain differences stay the same once it has left its place.
    """
    frames, first = len(grey), len(grey) if first is None else first
    total = np.zeros((first, frames))
    cells, side = grey.astype(np.float32), 1
    while side < GREY // 2:
        side *= 2
        rows = cells[:, ::2] + cells[:, 1::2]  # exact in float32, and faster than a mean over two axes
        cells = (rows[:, :, ::2] + rows[:, :, 1::2]) / 4
        flat = cells.reshape(frames, -1)
        total += side / flat.shape[1] * np.stack([np.abs(flat - one).sum(1) for one in flat[:first]])
    return total


def visible_order(between: Floats) -> float:
    """Of any three frames, how often the outer two differ most: 1 on a straight way, CHANCE without order."""
    frames = len(between)
    if frames < 3:
        return 1.0
    i, j, k = np.array([*combinations(range(frames), 3)]).T
    return float((between[i, k] > np.maximum(between[i, j], between[j, k])).mean())


@lru_cache(maxsize=64)
def order_of(path: Path, number: int) -> float:
    """The visible order of a clip in a file of clips."""
    return visible_order(distances(read_clip(path, number).grey))


def comes_back(between: Floats) -> NDArray[np.bool_]:
    """(frames,) whether the clip shows the same again later or earlier, after something else."""
    frames = len(between)
    step = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    beside = np.where(step == 1, between, np.inf).min(1)
    far = np.where(step > 1, between, np.inf).min(1, initial=np.inf)
    return far < _RETURN * beside
