"""`tpru build`: runs the stages in many processes, and puts the result in place.

Beside OUT lies `.OUT.work` until the result is whole: files of clips, then shards. A run that was ended goes
on from there; one with other options, or from a source that has changed, begins anew.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from tpru_verl import __version__
from tpru_verl.builder import deal, drafts
from tpru_verl.builder.card import card_of
from tpru_verl.builder.clips import Counts, Label, file_of, forget, read_labels
from tpru_verl.builder.describe import Describer
from tpru_verl.builder.doubtful import NEAR, PAGE, write_page
from tpru_verl.builder.sources import EPISODES, WITH_FRAMES, items_of, path_of
from tpru_verl.builder.stages import UNREADABLE, BuildOptions, Stages
from tpru_verl.builder.tasks import Place
from tpru_verl.data import layout
from tpru_verl.data.source.forms import Source
from tpru_verl.data.source.parts import check_outside
from tpru_verl.data.validate import fingerprints
from tpru_verl.data.work import opened
from tpru_verl.files import companion, locked, write_json, write_text
from tpru_verl.sample import Task
from tpru_verl.terminal import messages, needs

MADE_BY = "tpru build"
PROVENANCE = "provenance.jsonl"
SHOWN = 5  # items left out that the terminal shows; a file lists all of them


def build(
    source: str,
    out: Path,
    settings: BuildOptions,
    *,
    describer: Describer | None = None,
    against: Source | None = None,
    audit: bool = True,
    with_engine: str = "processes",
    workers: int | None = None,
) -> dict[str, Any]:
    """Write shards, manifest, provenance and card to `out`, whole or not at all; returns the manifest.

    Items that cannot be used are listed, and the rest goes on. The same source and settings give the same
    bytes, whatever the engine and the number of workers.

    Raises:
        FileExistsError: `out` holds something else.
        RuntimeError: another process is writing to `out`.
        ValueError: no usable item, `out` is in a source or holds one, a package is not installed, or
            the endpoint does not answer.
        OSError: no space left.
    """
    _check_installed(audit)
    check_outside(out, source, *(against.places if against else ()))
    with locked(out):
        layout.check_is_ours(out)
        items = items_of(
            source,
            settings.sampling,
            episodes=settings.episodes,
            seed=settings.seed,
            cover=settings.cover,
        )
        drafts.check_named(items, settings.drop)
        forget()
        work = companion(out, layout.WORK)
        try:
            with opened(with_engine, workers) as run:
                stages = Stages(items, work, settings, run, workers)
                shards, manifest, counts = _build(source, stages, settings, describer, against)
            # The audit has processes of its own: by now those of the stages have ended.
            return _finish(out, shards, stages, manifest, counts, audit)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OSError(
                    f"{out}: no space left; what is done stays in {work} for the next run"
                ) from error
            raise


def _check_installed(audit: bool) -> None:
    """Raise ValueError before anything is read where a package that every source needs is missing."""
    for package, module in (("imagehash", "imagehash"), ("scikit-learn", "sklearn")):
        if (audit or module != "sklearn") and find_spec(module) is None:
            raise needs("build", package, "tpru build")


def _build(
    source: str, stages: Stages, settings: BuildOptions, describer: Describer | None, against: Source | None
) -> tuple[Path, dict[str, object], Counts]:
    """The folder of the shards, the manifest, and the counts of items."""
    shown = fingerprints(against, workers=stages.workers) if against else []
    hashes = np.concatenate([np.zeros(0, np.uint64), *(row.hashes for row in shown)])
    clips, files, counts = stages.scan(leak_hash=against is not None)
    _show_left_out(counts)
    labels = _labels(clips, files, counts)
    for place in drafts.named(labels, settings.drop):
        counts.dropped.append({"id": labels.pop(place).id, "reason": "--drop", "detail": "named by --drop"})
    for place in drafts.leaked(labels, hashes):
        counts.dropped.append(
            {
                "id": labels.pop(place).id,
                "reason": "leak",
                "detail": f"has a picture of {against and against.name}",
            }
        )
    told = stages.tell(describer, clips, labels, counts) if describer else None
    if not labels:
        # Links and files that are never read come last.
        lost = sorted(counts.dropped, key=lambda entry: entry.get("kind", EPISODES) not in WITH_FRAMES)
        first = f"; the first: {_told(lost[0])}" if lost else ", and no frame"
        raise ValueError(f"{source}: found no usable clip{first}")
    splits = drafts.splits_of(labels, settings.split, settings.seed)
    plans, ledger, lost, measured = stages.draft(clips, told, labels, splits)
    for unsound in ledger.unsound:
        lost["not sound"] += 1
        messages.print(f"left out: {unsound}", style="yellow", markup=False, soft_wrap=True)
    shards, written = stages.write(plans, clips)
    (shards / PAGE).unlink(missing_ok=True)
    if doubtful := [clip for clip in measured if clip.distance < NEAR]:
        least = settings.options.least_order(Task.TEMPORAL_REORDERING, timed=True)
        write_page(shards / PAGE, clips, doubtful, least)
    manifest = _manifest(source, stages, counts, ledger, lost, written, describer, against)
    manifest["clips near the threshold"] = len(doubtful)
    manifest["not compared"] = sum(len(row.unread) for row in shown)
    manifest["visible_order"] = {clip.id: round(clip.order, 3) for clip in measured}
    return shards, manifest | {"shared_pictures": drafts.look_alikes(labels, splits)}, counts


def _show_left_out(counts: Counts) -> None:
    for lost in counts.dropped[:SHOWN]:
        messages.print(f"left out: {_told(lost)}", style="yellow", markup=False, soft_wrap=True)
    if len(counts.dropped) > SHOWN:
        more = len(counts.dropped) - SHOWN
        messages.print(f"left out: {more} more, listed in {layout.DROPPED}", style="yellow")


def _told(lost: Mapping[str, str]) -> str:
    """The id of an item that was left out, and why. Most details begin with the id."""
    named = lost["detail"].startswith((f"{lost['id']}: ", f"{lost['id']} ("))
    return lost["detail"] if named else f"{lost['id']}: {lost['detail']}"


def _labels(clips: Path, files: int, counts: Counts) -> dict[Place, Label]:
    """All clips. A clip with the id of an earlier one is left out and listed."""
    labels: dict[Place, Label] = {}
    names: set[str] = set()
    for number in range(files):
        for clip, label in enumerate(read_labels(file_of(clips, number))):
            if label.id in names:
                counts.dropped.append({"id": label.id, "reason": "id", "detail": "has the id of another one"})
                continue
            names.add(label.id)
            labels[number, clip] = label
    return labels


def _manifest(
    source: str,
    stages: Stages,
    counts: Counts,
    ledger: deal.Ledger,
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
        "source": {"name": path_of(source).name, "items": counts.items},
        "settings": settings,
        "model": describer.described() if describer else None,
        "against": Path(against.name).name if against else None,
        "frames": {"read": counts.frames, "kept": counts.kept_frames, "left_out": counts.dropped_frames},
        "neighbours": {"bits of 256": spread(counts.bits), "share of pixels changed": spread(counts.change)},
        "clips": counts.clips,
        "cuts": counts.cuts,
        "left_out": dict(sorted(Counter(entry["reason"] for entry in counts.dropped).items())),
        "unread_kinds": dict(_unread_kinds(counts).most_common()),
        "failed_rows": dict(sorted(lost.items())),
        "rows": {
            "written": sum(ledger.rows.values()),
            "splits": dict(ledger.rows),
            "tasks": {split: dict(sorted(tasks.items())) for split, tasks in sorted(ledger.tasks.items())},
            "scenes": {
                split: dict(sorted(scenes.items())) for split, scenes in sorted(ledger.scenes.items())
            },
            "answers": {
                name: dict(sorted(letters.items())) for name, letters in sorted(ledger.letters.items())
            },
            "wrong orders by Kendall distance": ledger.distances,
            "negatives": {
                name: dict(sorted(kinds.items())) for name, kinds in sorted(ledger.negatives.items())
            },
        },
        "files": files,
        "versions": {"tpru_verl": __version__, "pyarrow": pa.__version__},
    }


def _unread_kinds(counts: Counts) -> Counter[str]:
    """How much of each kind could not be read: `.heic`, `.txt`, `in folders of pictures`, ..."""
    return Counter(entry["kind"] for entry in counts.dropped if entry["reason"] == UNREADABLE)


def _ordered(counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: dict(sorted(numbers.items())) for name, numbers in sorted(counts.items())}


def _finish(
    out: Path,
    shards: Path,
    stages: Stages,
    manifest: dict[str, object],
    counts: Counts,
    audit: bool,
) -> dict[str, Any]:
    """Move the shards together, audit them, write manifest and card, and put all in place."""
    with layout.result_folder(out) as unfinished:
        with (unfinished / PROVENANCE).open("wb") as file:
            for path in sorted(shards.glob("*.jsonl")):
                file.write(path.read_bytes())
        for path in shards.glob("*.parquet"):
            placed = unfinished / layout.SHARDS / path.name
            try:
                os.link(path, placed)  # a run that is ended here finds it still
            except OSError:  # not every file system has links
                shutil.copyfile(path, placed)
        if (shards / PAGE).exists():
            shutil.copyfile(shards / PAGE, unfinished / PAGE)
        if counts.dropped:
            write_json(unfinished / layout.DROPPED, counts.dropped)
        names = (PROVENANCE, layout.DROPPED, PAGE)
        files = manifest["files"]
        assert isinstance(files, list)
        files += [
            {
                "name": name,
                "bytes": path.stat().st_size,
                "xxh3_128": layout.checksum_of(path, xxhash.xxh3_128()),
            }
            for name in names
            if (path := unfinished / name).exists()
        ]
        rows = manifest["rows"]
        assert isinstance(rows, dict)
        splits = sorted(rows["splits"])
        verdicts = {split: _audited(unfinished, split, stages.workers) for split in splits} if audit else {}
        manifest["audit"] = verdicts
        write_json(unfinished / layout.MANIFEST, manifest)
        write_text(unfinished / layout.CARD, card_of(manifest, splits))
    shutil.rmtree(stages.work, ignore_errors=True)
    return manifest


def _audited(folder: Path, split: str, workers: int | None) -> str:
    from tpru_verl.data.audit.measure import audit
    from tpru_verl.data.audit.report import verdict

    return verdict(audit(Source.open(f"{folder}@{split}"), workers=workers))
