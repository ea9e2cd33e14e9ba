"""Which rows there are: clips divided among splits, drafts of each clip, letters dealt over all of them.

Nothing here looks at a picture; hashes and thumbnails are enough. What is written is one file a shard, with a
line a row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from tpru_verl.builder.clips import Clip, Label, file_of, read_clip
from tpru_verl.builder.deal import Deal
from tpru_verl.builder.filters import Filters
from tpru_verl.builder.tasks import Draft, Near, Options, Place, ask, drafts_of, seeded
from tpru_verl.data.prepare import ONE_SPLIT, connected, shared_out
from tpru_verl.data.validate import SAME_PICTURE, bits
from tpru_verl.sample import Task, problems_of

NEIGHBOURS = 6  # clips of the same scene and split from which wrong frames and texts are taken
SHARD_ROWS = 512


@dataclass(frozen=True)
class Told:
    """What a model said of a clip; "" and None where it was not asked."""

    about: str = ""
    wrong: str = ""
    rejected: str = ""


@dataclass(frozen=True)
class DraftTask:
    """The clips of one file: the place of each, its split and the clips near it."""

    folder: Path  # of the files of clips
    told: Path | None  # folder of what a model said of them
    clips: Sequence[tuple[Place, str, tuple[Place, ...]]]
    options: Options
    filters: Filters
    seed: int


Drafted = list[tuple[str, list[Draft]]]  # (split, drafts) of each clip


def leaked(labels: Mapping[Place, Label], hashes: NDArray[np.uint64]) -> set[Place]:
    """Clips that have a picture of a test set, by perceptual hash."""
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
    """The next clips of the same scene and split, those of the same source group first."""
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
    """Drafts of a file's clips, and how many rows could not be, by reason."""
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


def told_file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


@lru_cache(maxsize=16)
def read_told(path: Path) -> dict[int, Told]:
    return {int(number): Told(**told) for number, told in json.loads(path.read_text()).items()}


@dataclass
class Ledger:
    """What was dealt, for the manifest."""

    rows: Counter[str] = field(default_factory=Counter)  # of each split
    tasks: dict[str, Counter[str]] = field(default_factory=dict)
    letters: dict[str, Counter[str]] = field(default_factory=dict)
    negatives: dict[str, Counter[str]] = field(default_factory=dict)


def deal(drafted: Iterable[Drafted], folder: Path, options: Options, seed: int) -> tuple[list[Path], Ledger]:
    """Write the rows of all drafts, a file for each shard, and return the files and what was dealt.

    Raises ValueError where there is no row.
    """
    deals: dict[tuple[str, Task], Deal] = {}
    shards: dict[str, _Shard] = {}
    ledger = Ledger()
    for split, row in ((split, row) for clips in drafted for split, rows in clips for row in rows):
        free = options.free_form and not row.asked
        letter = none = negative = ""
        if not free:
            dealer = deals.setdefault(
                (split, row.task), Deal(row.task, options.negatives, options.mismatches, seed, split)
            )
            letter, none, negative = dealer.next(row.negatives)
        asked = ask(row, letter, none, negative, seeded(seed, row.row_id, "words"))
        if problems := problems_of(asked.problem, asked.answer, len(asked.images)):
            raise ValueError(f"{row.row_id}: {problems[0]}")
        line = {**asdict(asked), "row_id": row.row_id, "task": row.task.value, "clip": row.clip}
        line |= {"scene": row.scene, "group": row.group, "seed": seed, "split": split}
        shards.setdefault(split, _Shard(folder, split)).add(line)
        ledger.rows[split] += 1
        ledger.tasks.setdefault(split, Counter())[row.task.value] += 1
        answer = asked.answer if letter else "an order"
        ledger.letters.setdefault(f"{split} {row.task.value}", Counter())[answer] += 1
        ledger.negatives.setdefault(f"{split} {row.task.value}", Counter())[negative or "positive"] += 1
    if not shards:
        raise ValueError("found no clip that a row can be made of")
    return [path for split in sorted(shards) for path in shards[split].close()], ledger


class _Shard:
    """The lines of one split, SHARD_ROWS a file."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self._lines: list[str] = []
        self._paths: list[Path] = []

    def add(self, line: Mapping[str, object]) -> None:
        self._lines.append(json.dumps(line, ensure_ascii=False))
        if len(self._lines) == SHARD_ROWS:
            self._write()

    def close(self) -> list[Path]:
        if self._lines:
            self._write()
        return self._paths

    def _write(self) -> None:
        path = self.folder / f"{self.split}-{len(self._paths):05d}.jsonl"
        path.write_text("\n".join(self._lines) + "\n", encoding="utf-8")
        self._paths.append(path)
        self._lines = []


def read_lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
