"""Drafts of rows: clips are divided among splits, and each clip becomes rows that have no letters yet.

Hashes and thumbnails of the frames are enough for this; no picture is decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from tpru_verl.builder.clips import Clip, Label, Told, file_of, read_clip, read_told, told_file
from tpru_verl.builder.filters import Filters
from tpru_verl.builder.tasks import Draft, Near, Place, TaskOptions, drafts_of
from tpru_verl.data.likeness import SAME_PICTURE, bits
from tpru_verl.data.splits import ONE_SPLIT, connected, shared_out

NEIGHBOURS = 6  # clips of the same scene and split that lend wrong frames and texts


@dataclass(frozen=True)
class DraftTask:
    """The clips of one file: the place of each, its split and the clips near it."""

    folder: Path  # of the files of clips
    told: Path | None  # folder of the files with the model's words about them
    clips: Sequence[tuple[Place, str, tuple[Place, ...]]]
    options: TaskOptions
    filters: Filters
    seed: int


Drafted = list[tuple[str, list[Draft]]]  # (split, drafts) of each clip


def leaked(labels: Mapping[Place, Label], hashes: NDArray[np.uint64]) -> set[Place]:
    """Clips that show a picture of a test set, compared by perceptual hash."""
    found: set[Place] = set()
    for place, label in labels.items():
        if len(hashes) and (bits(hashes[:, None] ^ label.leak_hash) <= SAME_PICTURE).any():
            found.add(place)
    return found


def splits_of(
    labels: Mapping[Place, Label], shares: Mapping[str, float] | None, seed: int
) -> dict[Place, str]:
    """Split of each clip. Clips that share a source group or a picture stay together.

    Raises ValueError where that leaves too few groups.
    """
    if shares is None:
        return dict.fromkeys(labels, ONE_SPLIT)
    places = [*labels]
    numbers = connected([(label.group, *label.digests) for label in labels.values()])
    members: dict[int, list[Place]] = {}
    for place, number in zip(places, numbers, strict=True):
        members.setdefault(number, []).append(place)

    def draw(group: Sequence[Place]) -> bytes:
        return xxhash.xxh3_128_digest(min(labels[place].id for place in group).encode(), seed)

    drawn = sorted(members.values(), key=draw)
    names = shared_out([len(group) for group in drawn], shares)
    return {place: name for name, group in zip(names, drawn, strict=True) for place in group}


def neighbours_of(
    labels: Mapping[Place, Label], splits: Mapping[Place, str]
) -> dict[Place, tuple[Place, ...]]:
    """For each clip the next clips of its scene and split. Those of its own source group come first."""
    scenes: dict[tuple[str, str], list[Place]] = {}
    for place, label in labels.items():
        scenes.setdefault((splits[place], label.scene), []).append(place)
    near: dict[Place, tuple[Place, ...]] = {}
    for members in scenes.values():
        members.sort(key=lambda place: (labels[place].group, place))
        for i, place in enumerate(members):
            count = min(NEIGHBOURS, len(members) - 1)
            near[place] = tuple(members[(i + step) % len(members)] for step in range(1, count + 1))
    return near


def draft(task: DraftTask) -> tuple[Drafted, Counter[str]]:
    """Drafts of the clips of one file, and the number of rows that could not be made, by reason."""
    drafted: Drafted = []
    lost: Counter[str] = Counter()
    for place, split, near in task.clips:
        clip, told = _clip(task, place)
        others = [Near(_clip(task, other)[0], other) for other in near]
        rows: list[Draft] = []
        for row in drafts_of(clip, place, others, told.wrong, task.options, task.filters, task.seed):
            if isinstance(row, Draft):
                rows.append(row)
            else:
                lost[row[1]] += 1
        drafted.append((split, rows))
    return drafted, lost


def _clip(task: DraftTask, place: Place) -> tuple[Clip, Told]:
    file, number = place
    told = read_told(told_file(task.told, file)).get(number, Told()) if task.told else Told()
    clip = read_clip(file_of(task.folder, file), number)
    return (replace(clip, about=told.about) if told.about and not clip.about else clip), told
