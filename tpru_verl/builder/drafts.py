"""Drafts of rows: clips are divided among splits, and each clip becomes rows that have no letters yet.

Hashes and thumbnails of the frames are enough for this; no picture is decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from tpru_verl.builder.clips import Clip, Label, SourceItem, Told, file_of, read_clip, read_told, told_file
from tpru_verl.builder.doubtful import Measured
from tpru_verl.builder.filters import Filters
from tpru_verl.builder.order import distances, visible_order
from tpru_verl.builder.tasks import Draft, Near, Place, TaskOptions, drafts_of
from tpru_verl.data.likeness import SAME_PICTURE, bits, watched_of
from tpru_verl.data.splits import ONE_SPLIT, connected, shared_out, shared_picture
from tpru_verl.sample import Task

CLOCK_CLIPS, CLOCK_FRAMES = 64, 160  # at most about so many of a scene tell where a clock runs
ALIKE_BITS = 8  # of 256: one picture at two sizes or qualities differs in no more
CHUNK = 4096  # hashes that are compared with as many at once: 64 MiB
NEIGHBOURS = 6  # clips of the same scene and split that lend wrong frames and texts


@dataclass(frozen=True)
class DraftTask:
    """The clips of one file: the place of each, its split and the clips near it."""

    folder: Path  # of the files of clips
    told: Path | None  # folder of the files with the model's words about them
    clips: Sequence[tuple[Place, str, tuple[Place, ...]]]
    watched: Mapping[str, NDArray[np.bool_]]  # of a scene: the pixels where no clock runs
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


def check_named(items: Sequence[SourceItem], names: Sequence[str]) -> None:
    """Raises ValueError for an id of a clip whose item the source does not hold, before any frame is read."""
    ids: set[str] = set()
    for item in items if names else ():
        with suppress(ValueError, OSError):  # told when the item is read
            ids.add(item.id)
    for name in names:
        if not {name, name.rpartition("#")[0]} & ids:
            raise _unknown(name)


def _unknown(name: str) -> ValueError:
    return ValueError(f"--drop: found {name!r}, expected the id of a clip, as in provenance.jsonl")


def named(labels: Mapping[Place, Label], names: Sequence[str]) -> list[Place]:
    """The clips of these ids. Raises ValueError for an id that no clip has."""
    places = {label.id: place for place, label in labels.items()}
    if unknown := sorted({*names} - {*places}):
        raise _unknown(unknown[0])
    return [places[name] for name in dict.fromkeys(names)]


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
    try:
        names = shared_out([len(group) for group in drawn], shares)
    except ValueError as error:
        same = shared_picture((label.id, label.group, label.digests) for label in labels.values())
        cure = f"; {same}. Take it out of the source, or cut off less with --crop and --mask" if same else ""
        raise ValueError(f"{error}{cure}") from None
    return {place: name for name, group in zip(names, drawn, strict=True) for place in group}


def look_alikes(labels: Mapping[Place, Label], splits: Mapping[Place, str]) -> dict[str, dict[str, int]]:
    """Split -> how many of its pictures and clips look like one of a larger split; none where there are none.

    Pictures are compared by their hashes: the same bytes in two splits are not possible (`splits_of`).
    """
    members: dict[str, list[Place]] = {}
    for place in labels:
        members.setdefault(splits[place], []).append(place)
    larger: list[Place] = []
    found: dict[str, dict[str, int]] = {}
    for split in sorted(members, key=lambda name: (-len(members[name]), name != ONE_SPLIT, name)):
        places = members[split]
        if larger:
            known = np.unique(np.concatenate([labels[place].hash for place in larger]), axis=0)
            alike = _alike(np.concatenate([labels[place].hash for place in places]), known)
            if pictures := int(alike.sum()):
                starts = np.cumsum([0, *(len(labels[place].hash) for place in places[:-1])])
                clips = int((np.add.reduceat(alike.astype(np.int64), starts) > 0).sum())
                counts = {"pictures": pictures, "of": len(alike), "clips": clips, "of_clips": len(places)}
                found[split] = counts
        larger += places
    return found


def _signs(hashes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bits of hashes as -1 and 1, (hashes, bits): products of two rows count the bits that agree."""
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1


def _alike(hashes: NDArray[np.uint8], known: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each picture looks like one of the known ones; hashes are (pictures, HASH_BYTES)."""
    least = 8 * hashes.shape[1] - 2 * ALIKE_BITS
    found = np.zeros(len(hashes), bool)
    for first in range(0, len(known), CHUNK):
        others = _signs(known[first : first + CHUNK]).T
        for start in range(0, len(hashes), CHUNK):
            block = slice(start, start + CHUNK)
            found[block] |= (_signs(hashes[block]) @ others >= least).any(1)
    return found


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


def draft(task: DraftTask) -> tuple[Drafted, Counter[str], list[Measured]]:
    """Drafts of the clips of one file, rows that could not be made by reason, and visible orders."""
    measured: list[Measured] = []
    drafted: Drafted = []
    lost: Counter[str] = Counter()
    for place, split, near in task.clips:
        clip, told = _clip(task, place)
        others = [Near(_clip(task, other)[0], other) for other in near]
        others += _earlier(task, clip, place, {*near})
        measured += _measured(clip, place, task.options)
        rows: list[Draft] = []
        watched = task.watched.get(clip.scene)
        for row in drafts_of(clip, place, others, told.wrong, task.options, task.filters, task.seed, watched):
            if isinstance(row, Draft):
                rows.append(row)
            else:
                lost[row[1]] += 1
        drafted.append((split, rows))
    return drafted, lost, measured


def _measured(clip: Clip, place: Place, options: TaskOptions) -> Iterator[Measured]:
    """The visible order of the clip, where reordering rows have a threshold for it."""
    least = options.least_order(Task.TEMPORAL_REORDERING, timed=clip.time[0] is not None)
    if least:
        order = visible_order(distances(clip.grey))
        yield Measured(abs(order - least), clip.id, place, order)


def _earlier(task: DraftTask, clip: Clip, place: Place, known: set[Place]) -> list[Near]:
    """The earlier clips of the same item. They are in the same file, one after another."""
    found: list[Near] = []
    for number in reversed(range(place[1])):
        other, _ = _clip(task, (place[0], number))
        if other.item != clip.item:
            break
        if (place[0], number) not in known:
            found.append(Near(other, (place[0], number)))
    return found


def watched_in(folder: Path, labels: Mapping[Place, Label]) -> dict[str, NDArray[np.bool_]]:
    """For each scene the pixels where no clock runs; scenes without a clock are absent.

    A sample of its clips tells, whatever their split.
    """
    scenes: dict[str, list[Place]] = {}
    for place, label in sorted(labels.items()):
        scenes.setdefault(label.scene, []).append(place)
    found: dict[str, NDArray[np.bool_]] = {}
    for scene, members in scenes.items():
        clips = [read_clip(file_of(folder, f), n) for f, n in members[:: 1 + len(members) // CLOCK_CLIPS]]
        step = 1 + sum(map(len, clips)) // CLOCK_FRAMES
        frames = [(clip.grey[i], clip.item) for clip in clips for i in range(0, len(clip), step)]
        watched = watched_of(np.stack([grey for grey, _ in frames]), [item for _, item in frames])
        if not watched.all():
            found[scene] = watched
    return found


def _clip(task: DraftTask, place: Place) -> tuple[Clip, Told]:
    file, number = place
    told = read_told(told_file(task.told, file)).get(number, Told()) if task.told else Told()
    clip = read_clip(file_of(task.folder, file), number)
    return (replace(clip, about=told.about) if told.about and not clip.about else clip), told
