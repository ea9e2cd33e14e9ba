"""The stages of a build: clips, a model's words about them, drafts, shards. A file that exists is kept."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import xxhash

from tpru_verl import __version__
from tpru_verl.builder import deal, drafts
from tpru_verl.builder.clips import (
    Clip,
    Counts,
    Label,
    SourceItem,
    Unusable,
    Writer,
    check_text,
    counts_file,
    file_of,
    read_clip,
    read_counts,
    read_images,
)
from tpru_verl.builder.crop import Cover
from tpru_verl.builder.describe import Describer
from tpru_verl.builder.doubtful import Measured
from tpru_verl.builder.filters import Filters, clips_of
from tpru_verl.builder.order import order_of
from tpru_verl.builder.sources import EPISODES
from tpru_verl.builder.tasks import Place, TaskOptions
from tpru_verl.builder.video import FrameSampling
from tpru_verl.data import layout
from tpru_verl.data.splits import check_shares
from tpru_verl.data.work import Run, in_order
from tpru_verl.files import whole, write_json, write_text
from tpru_verl.sample import Task
from tpru_verl.terminal import OptionError, line_of

UNIT_FRAMES = 256  # frames in a unit of work, about: it then takes seconds
UNREADABLE = "unreadable"  # why an item is left out that raised an error
LEAST_UNITS = 16  # units of a source with enough items, to keep all processes busy


Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class BuildOptions:
    """Everything beside the source that decides the bytes of the result.

    Raises ValueError, with the name of the command's option, for a value that makes no sense.
    """

    sampling: FrameSampling = field(default_factory=FrameSampling)
    filters: Filters = field(default_factory=Filters)
    options: TaskOptions = field(default_factory=TaskOptions)
    clip_frames: int = 24
    split: Mapping[str, float] | None = None
    seed: int = 0
    template: str = "tpru"
    episodes: int = 100
    cover: Cover = field(default_factory=Cover)
    drop: tuple[str, ...] = ()  # ids of clips that give no row

    def __post_init__(self) -> None:
        check_shares(self.split)
        steps = self.options.steps
        if not all(3 <= number <= 8 for number in steps) or not steps:
            raise OptionError(f"--steps: found {','.join(map(str, steps))}, expected numbers from 3 to 8")
        for name in ("negatives", "mismatches"):
            share = getattr(self.options, name)
            if not 0 <= share <= 1:
                raise OptionError(f"--{name}: found {share:g}, expected a share from 0 to 1")
        if self.clip_frames < max(steps):
            found = f"found {self.clip_frames}, expected at least {max(steps)}, as --steps has"
            raise OptionError(f"--clip-frames: {found}")
        if self.sampling.every is not None and not self.sampling.every > 0:
            raise OptionError(f"--every: found {self.sampling.every:g}, expected seconds over 0")


@dataclass(frozen=True)
class ScanTask:
    """Some items. Their clips go to one file."""

    items: Sequence[SourceItem]
    path: Path
    filters: Filters
    shortest: int
    longest: int
    leak_hash: bool


def scan(task: ScanTask) -> Counts:
    """Write the file of clips, unless it is there already. An item that fails is listed.

    Items that failed before are read again: a disk may be back, or a package installed.
    """
    if task.path.exists():
        before = read_counts(task.path)
        failed = sum(entry["reason"] == UNREADABLE for entry in before.dropped)
        if failed == sum(isinstance(item, Unusable) for item in task.items):
            return before
    counts = Counts()
    with whole(task.path) as file:
        writer = Writer(file)
        for item in task.items:
            for clip, images in _clips(item, task, counts):
                writer.add(clip, images)
        writer.close()
        write_json(counts_file(task.path), vars(counts))
    return counts


def _clips(item: SourceItem, task: ScanTask, counts: Counts) -> Iterator[tuple[Clip, list[bytes]]]:
    """The clips of an item. Any error ends the item alone: files of others and decoders raise many kinds."""
    counts.items += 1
    bare = getattr(item, "item", item)  # without the cover
    kind, name = getattr(bare, "kind", EPISODES), getattr(bare, "name", "")  # an episode may hide its id
    try:
        name = item.id
        check_text(id=name, scene=item.scene, group=item.group)
        yield from clips_of(
            item,
            task.filters,
            counts,
            shortest=task.shortest,
            longest=task.longest,
            leak_hash=task.leak_hash,
        )
    except Exception as error:
        counts.dropped.append({"id": name, "reason": UNREADABLE, "detail": _detail(error), "kind": kind})


def _detail(error: Exception) -> str:
    """The first line of an error, after its type where the text alone says too little."""
    kind, said = type(error).__name__, line_of(error)
    return said if isinstance(error, (OSError, ValueError)) or said == kind else f"{kind}: {said}"


@dataclass(frozen=True)
class WriteTask:
    """One shard: its rows, where their frames are, and where it goes."""

    plan: Path
    folder: Path
    path: Path
    template: str
    first: int  # number of the shard's first row in its split


def write(task: WriteTask) -> dict[str, object]:
    """Write the shard and the provenance of its rows, unless they exist. Return the size and the checksum."""
    if not task.path.exists():
        schema = layout.schema_of()
        provenance: list[str] = []
        lines = [*deal.read_lines(task.plan)]
        with whole(task.path) as file, layout.open_shard(file, schema) as writer:
            for start in range(0, len(lines), layout.GROUP_ROWS):
                group = lines[start : start + layout.GROUP_ROWS]
                records = [_record(line, task, start + i) for i, line in enumerate(group)]
                writer.write_table(pa.Table.from_pylist(records, schema))
                provenance += [_provenance(line, task.folder) for line in group]
            write_text(task.path.with_suffix(".jsonl"), "".join(provenance))
    digest = layout.checksum_of(task.path, xxhash.xxh3_128())
    size = task.path.stat().st_size
    return {"bytes": size, "xxh3_128": digest, "rows": sum(1 for _ in deal.read_lines(task.plan))}


def _record(line: Mapping, task: WriteTask, number: int) -> dict[str, object]:
    names = {"scene": line["scene"], "source_id": line["group"], "row_id": line["row_id"]}
    row = (line["problem"], line["answer"], Task(line["task"]))
    record = layout.record_of(*row, names, task.template, task.first + number)
    images: list[dict[str, object]] = []
    for file, clip, frame in line["images"]:
        (data,) = read_images(file_of(task.folder, file), clip, [frame])
        images.append({"bytes": data, "path": None})
    return {**record, "images": images}


def _provenance(line: Mapping, folder: Path) -> str:
    """A line of JSON: where each picture of the row comes from."""
    frames: list[dict[str, object]] = []
    for file, number, frame in line["images"]:
        clip = read_clip(file_of(folder, file), number)
        frames.append(
            {
                "clip": clip.id,
                "index": clip.index[frame],
                "time": clip.time[frame],
                "text": clip.text[frame],
            }
        )
    kept = ("row_id", "split", "task", "scene", "group", "clip", "answer", "negative", "seed")
    filters = ["blank", "blurred", "frozen", "too small a change", "duplicate", "cyclic"]
    own, number, _ = line["images"][0]  # the first picture of every row is of its own clip
    content = {
        **{name: line[name] for name in kept},
        "visible_order": round(order_of(file_of(folder, own), number), 3),
        "filters_passed": filters,
        "frames": frames,
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


class Stages:
    """The stages of one build, and their files."""

    def __init__(
        self, items: list[SourceItem], work: Path, settings: BuildOptions, run: Run, workers: int | None
    ) -> None:
        self.items, self.work, self.settings = items, work, settings
        self.run, self.workers = run, workers

    def _run(self, tasks: Sequence[Given], work: Callable[[Given], Made], title: str) -> Iterator[Made]:
        return in_order(tasks, work, title=title, workers=self.workers, run=self.run)

    def folder(self, name: str, *decided_by: object) -> Path:
        """A stage's folder, named by a hash of what decides its content. Older folders are removed."""
        key = xxhash.xxh3_64_hexdigest(repr((__version__, decided_by)).encode())
        wanted = self.work / f"{name}-{key}"
        for other in self.work.glob(f"{name}-*"):
            if other != wanted:
                shutil.rmtree(other)
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted

    def scan(self, *, leak_hash: bool) -> tuple[Path, int, Counts]:
        """Folder and number of the files of clips."""
        settings = self.settings
        marks = [_mark(item) for item in self.items]
        shortest = min(settings.options.steps)
        size = max(
            1,
            min(UNIT_FRAMES // max(item.usual_frames for item in self.items), len(self.items) // LEAST_UNITS),
        )
        decided = (settings.filters, shortest, settings.clip_frames, leak_hash)
        folder = self.folder("clips", marks, size, *decided)
        units = [self.items[start : start + size] for start in range(0, len(self.items), size)]
        tasks = [
            ScanTask(unit, file_of(folder, i), settings.filters, shortest, settings.clip_frames, leak_hash)
            for i, unit in enumerate(units)
        ]
        counts = Counts()
        for part in self._run(tasks, scan, "Reading frames"):
            counts.add(part)
        return folder, len(tasks), counts

    def tell(self, describer: Describer, clips: Path, labels: dict[Place, Label], counts: Counts) -> Path:
        """Have a model look at the clips. Clips that it rejects are removed from `labels` and listed."""
        named = [(place, labels[place].id) for place in sorted(labels)]
        folder = self.folder("told", clips, describer.key, named)
        for number, saying in describer.look_at(clips, folder, sorted(labels)):
            for clip, said in saying.items():
                if said.rejected and (label := labels.pop((number, clip), None)):
                    counts.dropped.append(
                        {"id": label.id, "reason": "rejected by the model", "detail": said.rejected}
                    )
        return folder

    def draft(
        self,
        clips: Path,
        told: Path | None,
        labels: Mapping[Place, Label],
        splits: Mapping[Place, str],
    ) -> tuple[list[Path], deal.Ledger, Counter[str], list[Measured]]:
        settings = self.settings
        near = drafts.neighbours_of(labels, splits)
        watched = drafts.watched_in(clips, labels)
        tasks = [
            drafts.DraftTask(
                clips,
                told,
                [(place, splits[place], near[place]) for place in places],
                watched,
                settings.options,
                settings.filters,
                settings.seed,
            )
            for _, places in groupby(sorted(labels), key=lambda place: place[0])
        ]
        lost: Counter[str] = Counter()
        measured: list[Measured] = []

        def drafted() -> Iterator[drafts.Drafted]:
            for rows, without, near_by in self._run(tasks, drafts.draft, "Drafting rows"):
                lost.update(without)
                measured.extend(near_by)
                yield rows

        folder = self.folder("plan")
        shutil.rmtree(folder)
        folder.mkdir()
        try:
            plans, ledger = deal.deal(drafted(), folder, settings.options, settings.seed)
        except ValueError as error:
            reasons = ", ".join(f"{count} rows: {reason}" for reason, count in lost.most_common())
            raise ValueError(f"{error}{f' ({reasons})' * bool(reasons)}") from error
        return plans, ledger, lost, measured

    def write(self, plans: Sequence[Path], clips: Path) -> tuple[Path, list[dict[str, object]]]:
        """The folder of the shards, and the description of each shard."""
        digests = [xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in plans]
        template = Path(self.settings.template).expanduser()
        text = layout.checksum_of(template, xxhash.xxh3_128()) if template.is_file() else ""
        folder = self.folder("rows", clips, digests, self.settings.template, text)
        shards = Counter(path.stem.rpartition("-")[0] for path in plans)
        tasks: list[WriteTask] = []
        for path in plans:
            split, _, number = path.stem.rpartition("-")
            name = f"{path.stem}-of-{shards[split]:05d}.parquet"
            first = int(number) * deal.SHARD_ROWS
            tasks.append(WriteTask(path, clips, folder / name, self.settings.template, first))
        results = self._run(tasks, write, "Writing shards")
        described = [
            {"name": f"{layout.SHARDS}/{task.path.name}", **result}
            for task, result in zip(tasks, results, strict=True)
        ]
        return folder, described


def _mark(item: SourceItem) -> tuple[object, ...]:
    """A value that changes when the files of an item change."""
    try:
        return (repr(item), *map(_state, item.files()))
    except (OSError, ValueError) as error:
        return repr(item), str(error)


def _state(path: Path) -> tuple[object, ...]:
    """What changes with a file, and when another one takes its name; () for a file that may still come."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # no such file, or a text that is no path
        return ()
    return path.name, found.st_size, found.st_mtime_ns, found.st_ino
