"""The data set card of a build, and its summary in the terminal: both show what the manifest says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from tpru_verl import __version__
from tpru_verl.data.layout import DROPPED, card_head


def card_of(manifest: Mapping[str, Any], splits: Sequence[str]) -> str:
    rows, frames = manifest["rows"], manifest["frames"]
    body = [
        "# Rows of temporal and procedural questions",
        "",
        f"{rows['written']} rows from {manifest['clips']} clips of {manifest['source']['items']} items of "
        f"`{manifest['source']['name']}`, made by `tpru build` {__version__}, seed "
        f"{manifest['settings']['seed']}.",
        "",
        *_table("split", "rows", rows["splits"]),
        *_table("split and task", "answers", {k: _listed(v) for k, v in rows["answers"].items()}),
        *_table("split and task", "rows by kind", {k: _listed(v) for k, v in rows["negatives"].items()}),
        "A mismatch row describes something else than its pictures show, a missing-answer row lists no right "
        'choice; in both "None of the choices provided" is right.',
        "",
        f"Of {frames['read']} frames {frames['kept']} were kept. Left out: "
        f"{_listed(frames['left_out']) or 'none'}. "
        f"Items and clips left out: {_listed(manifest['left_out']) or 'none'}. "
        f"Rows that could not be made: {_listed(manifest['failed_rows']) or 'none'}.",
        "",
    ]
    if manifest["against"]:
        body += [f"No row has a picture of `{manifest['against']}`, by perceptual hash.", ""]
    if manifest["model"]:
        model = manifest["model"]
        body += [f"`{model['model']}` was asked to {', '.join(model['asked'])}.", ""]
    for split, verdict in manifest["audit"].items():
        body += [f"## What `tpru data audit` says of {split}", "", verdict, ""]
    body += [
        "`provenance.jsonl` names the clip, frame and time of every picture of every row; `manifest.json` "
        "has all settings, counts and checksums. Clocks and counters in pictures are not looked for. The "
        "licence is that of the source.",
    ]
    return "\n".join([*card_head(splits), "", *body]) + "\n"


def summary_of(manifest: Mapping[str, Any], out: Path) -> Iterator[RenderableType]:
    """A table of rows by task and split, and a line for each of the other facts."""
    rows, frames = manifest["rows"], manifest["frames"]
    splits = sorted(rows["splits"])
    table = Table("task", *splits, title=f"{rows['written']} rows from {manifest['clips']} clips")
    for task in sorted({task for tasks in rows["tasks"].values() for task in tasks}):
        table.add_row(task, *(str(rows["tasks"][split].get(task, 0)) for split in splits))
    yield table
    yield f"frames: {frames['kept']} of {frames['read']} kept{_reasons(frames['left_out'])}"
    if manifest["left_out"]:
        total = sum(manifest["left_out"].values())
        yield f"left out: {total}{_reasons(manifest['left_out'])}, listed in {out / DROPPED}"
    if manifest["failed_rows"]:
        failed = manifest["failed_rows"]
        yield f"rows that could not be made: {sum(failed.values())}{_reasons(failed)}"
    for split, verdict in manifest["audit"].items():
        yield f"audit of {split}: {verdict}"
    shown = f"{out}@{splits[0]}" if len(splits) > 1 else str(out)
    yield f"{out}: written; next: tpru data view {shlex.quote(shown)}"


def _reasons(counts: Mapping[str, int]) -> str:
    return f" ({_listed(counts)})" if counts else ""


def _table(left: str, right: str, lines: Mapping[str, object]) -> list[str]:
    return [f"| {left} | {right} |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in lines.items()), ""]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
