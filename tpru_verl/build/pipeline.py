"""`tpru build`: frames, filters, drafts, rows; each stage in many processes, and none done twice.

Beside OUT lies `.OUT.work` until the result is whole: files of clips, then shards. A run that was ended goes
on from there; one with other options, or from a source that has changed, begins anew.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from tpru_verl import __version__
from tpru_verl.build import engine, plan
from tpru_verl.build.card import card_of
from tpru_verl.build.clips import (
    Counts,
    Item,
    Label,
    Writer,
    read_clip,
    read_counts,
    read_images,
    read_labels,
)
from tpru_verl.build.describe import Describer
from tpru_verl.build.filters import Filters, clips_of
from tpru_verl.build.sources import items_of
from tpru_verl.build.tasks import Options, Place
from tpru_verl.build.video import Sampling
from tpru_verl.data import prepare
from tpru_verl.data.files import write_json, write_text
from tpru_verl.data.source import line_of
from tpru_verl.data.validate import fingerprints
from tpru_verl.data.work import Source, console
from tpru_verl.sample import Task

MADE_BY = "tpru build"
PROVENANCE = "provenance.jsonl"
UNIT_FRAMES = 256  # frames that a unit of work is meant to have: then it takes seconds
ITEM_FRAMES = {"Video": 64, "Recorded": 64, "Simulated": 32, "Pictures": 4, "Line": 4}  # about, of one item
LEAST_UNITS = 16  # of a source that has as many items: so that there is work for all processes
SHOWN = 5  # left out items that the terminal shows; all are in a file


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of the result, beside the source."""

    sampling: Sampling = field(default_factory=Sampling)
    filters: Filters = field(default_factory=Filters)
    options: Options = field(default_factory=Options)
    clip_frames: int = 24
    split: Mapping[str, float] | None = None
    seed: int = 0
    template: str = "tpru"
    episodes: int = 100


def build(
    source: str,
    out: Path,
    settings: Settings,
    *,
    describer: Describer | None = None,
    against: Source | None = None,
    audit: bool = True,
    with_engine: str = "processes",
    workers: int | None = None,
) -> dict[str, object]:
    """Write shards, manifest, provenance and card to `out`, whole or not at all; returns the manifest.

    Items that cannot be used are listed, and the rest goes on. The same source and settings give the same
    bytes, whatever the engine and the number of workers.

    Raises:
        FileExistsError: `out` holds something else.
        ValueError: no usable item, shares that are none, an endpoint that does not answer.
        OSError: no space left.
    """
    check_settings(settings)
    prepare.check_is_ours(out)
    items = items_of(source, settings.sampling, episodes=settings.episodes, seed=settings.seed)
    work = out.absolute().with_name(f".{out.name}.work")
    stages = _Stages(items, work, settings, with_engine, workers)
    try:
        return _build(source, out, stages, settings, describer, against, audit)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(f"{out}: no space left; what is done stays in {work} for the next run") from error
        raise


def _build(
    source: str,
    out: Path,
    stages: _Stages,
    settings: Settings,
    describer: Describer | None,
    against: Source | None,
    audit: bool,
) -> dict[str, object]:
    hashes = _hashes(against, stages.workers)
    files, counts = stages.scan(leak_hash=against is not None)
    _show_left_out(counts)
    labels = _labels(files)
    for place in plan.leaked(labels, hashes):
        counts.dropped.append(
            {
                "id": labels.pop(place).id,
                "reason": "leak",
                "detail": f"has a picture of {against and against.name}",
            }
        )
    told = stages.tell(describer, files, labels, counts) if describer else {}
    if not labels:
        first = counts.dropped[0] if counts.dropped else {"id": source, "detail": "found no frames"}
        raise ValueError(f"{source}: found no usable clip; the first: {first['id']}: {first['detail']}")
    splits = plan.splits_of(labels, settings.split, settings.seed)
    plans, ledger, lost = stages.draft(files, told, labels, splits, source)
    written = stages.write(plans, files)
    manifest = _manifest(source, stages, counts, ledger, lost, written, describer, against)
    return _finish(out, stages, manifest, counts, plans, audit)


def check_settings(settings: Settings) -> None:
    """Raises ValueError, with the option's name, for what makes no sense."""
    options = settings.options
    prepare.check_shares(settings.split)
    if not all(3 <= steps <= 8 for steps in options.steps) or not options.steps:
        raise ValueError(f"--steps: found {','.join(map(str, options.steps))}, expected numbers from 3 to 8")
    for name in ("negatives", "mismatches"):
        share = getattr(options, name)
        if not 0 <= share <= 1:
            raise ValueError(f"--{name}: found {share:g}, expected a share from 0 to 1")
    if settings.clip_frames < max(options.steps):
        found = f"found {settings.clip_frames}, expected at least {max(options.steps)}, as --steps has"
        raise ValueError(f"--clip-frames: {found}")
    if settings.sampling.every is not None and settings.sampling.every <= 0:
        raise ValueError(f"--every: found {settings.sampling.every:g}, expected seconds over 0")


def _hashes(against: Source | None, workers: int | None) -> np.ndarray:
    if against is None:
        return np.zeros(0, np.uint64)
    return np.concatenate(
        [row.hashes for row in fingerprints(against, workers=workers)] or [np.zeros(0, np.uint64)]
    )


def _show_left_out(counts: Counts) -> None:
    for lost in counts.dropped[:SHOWN]:
        console.print(
            f"left out: {lost['id']}: {lost['detail']}", style="yellow", markup=False, soft_wrap=True
        )
    if len(counts.dropped) > SHOWN:
        more = len(counts.dropped) - SHOWN
        console.print(f"left out: {more} more, listed in {prepare.DROPPED}", style="yellow")


def _labels(files: Sequence[Path]) -> dict[Place, Label]:
    labels = {
        (number, clip): label
        for number, path in enumerate(files)
        for clip, label in enumerate(read_labels(path))
    }
    twice = [name for name, times in Counter(label.id for label in labels.values()).items() if times > 1]
    if twice:
        raise ValueError(f"id: found {twice[0]!r} for several clips, expected a name of its own for each")
    return labels


@dataclass(frozen=True)
class ScanTask:
    """Some items, whose clips go to one file."""

    items: Sequence[Item]
    path: Path
    filters: Filters
    shortest: int
    longest: int
    leak_hash: bool


def scan(task: ScanTask) -> Counts:
    """Write the file of clips, unless it is there already. An item that fails is listed."""
    if task.path.exists():
        return read_counts(task.path)
    counts, writer = Counts(), Writer(task.path)
    try:
        for item in task.items:
            counts.items += 1
            name = ""
            try:
                name = item.id
                clips = clips_of(
                    item,
                    task.filters,
                    counts,
                    shortest=task.shortest,
                    longest=task.longest,
                    leak_hash=task.leak_hash,
                )
                for clip, images in clips:
                    writer.add(clip, images)
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                counts.dropped.append({"id": name, "reason": "unreadable", "detail": line_of(error)})
        writer.close(counts)
    except BaseException:
        writer.discard()
        raise
    return counts


@dataclass(frozen=True)
class WriteTask:
    """One shard: its rows, where their frames are, and where it goes."""

    plan: Path
    files: Sequence[Path]
    path: Path
    template: str
    first: int  # number of its first row in the split


def write(task: WriteTask) -> dict[str, object]:
    """Write the shard and its rows' provenance, unless they are there already; describes the shard."""
    if not task.path.exists():
        unfinished = task.path.with_name(f".{task.path.name}.unfinished")
        schema = prepare.schema_of()
        provenance: list[str] = []
        lines = [*plan.read_lines(task.plan)]
        with prepare.open_shard(unfinished, schema) as writer:
            for start in range(0, len(lines), prepare.GROUP_ROWS):
                group = lines[start : start + prepare.GROUP_ROWS]
                records = [_record(line, task, start + i) for i, line in enumerate(group)]
                writer.write_table(pa.Table.from_pylist(records, schema))
                provenance += [_provenance(line, task.files) for line in group]
        write_text(task.path.with_suffix(".jsonl"), "".join(provenance))
        unfinished.replace(task.path)
    digest = prepare.checksum_of(task.path, xxhash.xxh3_128())
    size = task.path.stat().st_size
    return {"bytes": size, "xxh3_128": digest, "rows": sum(1 for _ in plan.read_lines(task.plan))}


def _record(line: Mapping, task: WriteTask, number: int) -> dict[str, object]:
    names = {"scene": line["scene"], "source_id": line["group"], "row_id": line["row_id"]}
    row = (line["problem"], line["answer"], Task(line["task"]))
    record = prepare.record_of(*row, names, task.template, task.first + number)
    images: list[dict[str, object]] = []
    for file, clip, frame in line["images"]:
        (data,) = read_images(task.files[file], clip, [frame])
        images.append({"bytes": data, "path": None})
    return {**record, "images": images}


def _provenance(line: Mapping, files: Sequence[Path]) -> str:
    """A line of JSON: where each picture of the row comes from."""
    frames: list[dict[str, object]] = []
    for file, number, frame in line["images"]:
        clip = read_clip(files[file], number)
        frames.append({"clip": clip.id, "index": clip.index[frame], "time": clip.time[frame]})
    kept = ("row_id", "split", "task", "scene", "group", "clip", "answer", "negative", "seed")
    filters = ["blank", "blurred", "frozen", "too small a change", "duplicate", "cyclic"]
    content = {**{name: line[name] for name in kept}, "filters_passed": filters, "frames": frames}
    return json.dumps(content, ensure_ascii=False) + "\n"


class _Stages:
    """The stages of one build, and their files."""

    def __init__(
        self, items: list[Item], work: Path, settings: Settings, with_engine: str, workers: int | None
    ) -> None:
        self.items, self.work, self.settings = items, work, settings
        self.engine, self.workers = with_engine, workers

    def _run(self, tasks, work, title: str) -> Iterator:
        return engine.run(tasks, work, title=title, engine=self.engine, workers=self.workers)

    def folder(self, name: str, *decided_by: object) -> Path:
        """A stage's folder, named by what decides its content; those of other settings are removed."""
        key = xxhash.xxh3_64_hexdigest(repr((__version__, decided_by)).encode())
        wanted = self.work / f"{name}-{key}"
        for other in self.work.glob(f"{name}-*"):
            if other != wanted:
                shutil.rmtree(other)
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted

    def scan(self, *, leak_hash: bool) -> tuple[list[Path], Counts]:
        settings = self.settings
        marks = [_mark(item) for item in self.items]
        shortest = min(settings.options.steps)
        size = UNIT_FRAMES // ITEM_FRAMES.get(type(self.items[0]).__name__, 64)
        size = max(1, min(size, len(self.items) // LEAST_UNITS))
        decided = (settings.filters, shortest, settings.clip_frames, leak_hash)
        folder = self.folder("clips", marks, size, *decided)
        units = [self.items[start : start + size] for start in range(0, len(self.items), size)]
        tasks = [
            ScanTask(
                unit, folder / f"{i:06d}.arrow", settings.filters, shortest, settings.clip_frames, leak_hash
            )
            for i, unit in enumerate(units)
        ]
        counts = Counts()
        for part in self._run(tasks, scan, "Reading frames"):
            counts.add(part)
        return [task.path for task in tasks], counts

    def tell(
        self, describer: Describer, files: Sequence[Path], labels: dict[Place, Label], counts: Counts
    ) -> dict[int, Path]:
        """Have a model look at the clips; what it rejects is taken out of `labels` and listed."""
        folder = self.folder("told", files, describer.key)
        told = {i: folder / f"{path.stem}.json" for i, path in enumerate(files)}
        for number, saying in describer.look_at(files, told, labels):
            for clip, said in saying.items():
                if said.rejected and (label := labels.pop((number, clip), None)):
                    counts.dropped.append(
                        {"id": label.id, "reason": "rejected by the model", "detail": said.rejected}
                    )
        return told

    def draft(
        self,
        files: Sequence[Path],
        told: Mapping[int, Path],
        labels: Mapping[Place, Label],
        splits: Mapping[Place, str],
        source: str,
    ) -> tuple[list[Path], plan.Ledger, Counter[str]]:
        settings = self.settings
        near = plan.neighbours_of(labels, splits)
        tasks: list[plan.DraftTask] = []
        for number in sorted({file for file, _ in labels}):
            places = [place for place in labels if place[0] == number]
            seen = {number} | {file for place in places for file, _ in near[place]}
            clips = [(place, splits[place], near[place]) for place in places]
            paths = {file: files[file] for file in seen}
            words = {file: told[file] for file in seen if file in told}
            tasks.append(
                plan.DraftTask(paths, words, clips, settings.options, settings.filters, settings.seed)
            )
        lost: Counter[str] = Counter()

        def drafted() -> Iterator[plan.Drafted]:
            for rows, without in self._run(tasks, plan.draft, "Drafting rows"):
                lost.update(without)
                yield rows

        folder = self.folder(
            "plan", files, settings, splits, sorted(told), [p.read_text() for p in told.values()]
        )
        shutil.rmtree(folder)
        folder.mkdir()
        try:
            plans, ledger = plan.deal(drafted(), folder, settings.options, settings.seed)
        except ValueError as error:
            reasons = ", ".join(f"{count} rows: {reason}" for reason, count in lost.most_common())
            raise ValueError(f"{source}: {error}{f' ({reasons})' * bool(reasons)}") from error
        return plans, ledger, lost

    def write(self, plans: Sequence[Path], files: Sequence[Path]) -> list[dict[str, object]]:
        folder = self.folder(
            "rows", files, [xxhash.xxh3_128_hexdigest(p.read_bytes()) for p in plans], self.settings.template
        )
        shards = Counter(path.stem.rpartition("-")[0] for path in plans)
        tasks: list[WriteTask] = []
        for path in plans:
            split, _, number = path.stem.rpartition("-")
            name = f"{path.stem}-of-{shards[split]:05d}.parquet"
            first = int(number) * plan.SHARD_ROWS
            tasks.append(WriteTask(path, files, folder / name, self.settings.template, first))
        results = self._run(tasks, write, "Writing shards")
        self.rows = folder
        return [{"name": task.path.name, **result} for task, result in zip(tasks, results, strict=True)]


def _mark(item: Item) -> tuple[object, ...]:
    """What shows that an item is as it was."""
    path = getattr(item, "path", None)
    if not isinstance(path, Path):
        return (repr(item),)
    try:
        state = path.stat()
    except OSError:  # reported when it is read
        return (repr(item),)
    return (repr(item), state.st_size, state.st_mtime_ns)


def _manifest(
    source: str,
    stages: _Stages,
    counts: Counts,
    ledger: plan.Ledger,
    lost: Counter[str],
    files: list[dict[str, object]],
    describer: Describer | None,
    against: Source | None,
) -> dict[str, object]:
    settings = asdict(stages.settings)
    settings["sampling"].pop("threads")
    quantiles = [0, 5, 25, 50, 75, 95, 100]

    def spread(values: Sequence[float]) -> dict[str, float]:
        if not values:
            return {}
        return {
            f"{q} %": round(float(v), 5)
            for q, v in zip(quantiles, np.percentile(values, quantiles), strict=True)
        }

    return {
        "made_by": MADE_BY,
        "source": {"name": Path(source).name or source, "items": counts.items},
        "settings": settings,
        "model": describer.described() if describer else None,
        "against": Path(against.name).name if against else None,
        "frames": {"read": counts.frames, "kept": counts.kept_frames, "left_out": counts.dropped_frames},
        "neighbours": {"bits of 256": spread(counts.bits), "share of pixels changed": spread(counts.change)},
        "clips": counts.clips,
        "left_out": dict(sorted(Counter(entry["reason"] for entry in counts.dropped).items())),
        "rows_that_could_not_be": dict(sorted(lost.items())),
        "rows": {
            "written": sum(ledger.rows.values()),
            "splits": dict(ledger.rows),
            "tasks": {split: dict(sorted(tasks.items())) for split, tasks in sorted(ledger.tasks.items())},
            "answers": {
                name: dict(sorted(letters.items())) for name, letters in sorted(ledger.letters.items())
            },
            "negatives": {
                name: dict(sorted(kinds.items())) for name, kinds in sorted(ledger.negatives.items())
            },
        },
        "files": files,
        "versions": {"tpru_verl": __version__, "pyarrow": pa.__version__},
    }


def _finish(
    out: Path,
    stages: _Stages,
    manifest: dict[str, object],
    counts: Counts,
    plans: Sequence[Path],
    audit: bool,
) -> dict[str, object]:
    """Move the shards together, audit them, write manifest and card, and put all in place."""
    unfinished = out.absolute().with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with (unfinished / PROVENANCE).open("wb") as file:
            for path in sorted(stages.rows.glob("*.jsonl")):
                file.write(path.read_bytes())
        for path in stages.rows.glob("*.parquet"):
            os.link(path, unfinished / path.name)
        if counts.dropped:
            write_json(unfinished / prepare.DROPPED, counts.dropped)
        names = (PROVENANCE, prepare.DROPPED)
        files = manifest["files"]
        assert isinstance(files, list)
        files += [
            {
                "name": name,
                "bytes": path.stat().st_size,
                "xxh3_128": prepare.checksum_of(path, xxhash.xxh3_128()),
            }
            for name in names
            if (path := unfinished / name).exists()
        ]
        splits = sorted({path.stem.rpartition("-")[0] for path in plans})
        verdicts = {split: _audited(unfinished, split, stages.workers) for split in splits} if audit else {}
        manifest["audit"] = verdicts
        write_json(unfinished / prepare.MANIFEST, manifest)
        write_text(unfinished / prepare.CARD, card_of(manifest, splits))
        prepare.put_in_place(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(stages.work, ignore_errors=True)
    return manifest


def _audited(folder: Path, split: str, workers: int | None) -> str:
    from tpru_verl.data.audit import audit, verdict

    return verdict(audit(Source.open(f"{folder}@{split}"), workers=workers))
