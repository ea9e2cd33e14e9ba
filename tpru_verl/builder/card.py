"""The data set card of a build, and its summary in the terminal: both show what the manifest says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from tpru_verl import __version__
from tpru_verl.builder.doubtful import PAGE
from tpru_verl.data.layout import DROPPED, card_head
from tpru_verl.data.splits import lone_scene, rows_table, view_commands
from tpru_verl.terminal import counted


def card_of(manifest: Mapping[str, Any], splits: Sequence[str]) -> str:
    rows, frames = manifest["rows"], manifest["frames"]
    body = [
        "# Rows of temporal and procedural questions",
        "",
        f"{counted(rows['written'], 'row')} from {counted(manifest['clips'], 'clip')} of "
        f"{counted(manifest['source']['items'], 'item')} of "
        f"`{manifest['source']['name']}`, made by `tpru build` {__version__}, seed "
        f"{manifest['settings']['seed']}.",
        "",
        *_table("split", "rows", rows["splits"]),
        *_table("split", "rows by scene", {k: _listed(v) for k, v in rows["scenes"].items()}),
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
    for line in shared_pictures(manifest, "OUT"):
        body += [f"{line[0].upper()}{line[1:]}", ""]
    if manifest["against"]:
        lost = manifest["not compared"]
        unread = f" {lost} of its pictures could not be read, and were not compared." if lost else ""
        body += [f"No row has a picture of `{manifest['against']}`, by perceptual hash.{unread}", ""]
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
    return "\n".join([*card_head(splits, manifest["files"]), "", *body]) + "\n"


def summary_of(manifest: Mapping[str, Any], out: Path) -> Iterator[RenderableType]:
    """A table of rows by task, scene and split, and a line for each of the other facts."""
    rows, frames = manifest["rows"], manifest["frames"]
    yield rows_table(rows, f"{counted(rows['written'], 'row')} from {counted(manifest['clips'], 'clip')}")
    yield f"frames: {frames['kept']} of {frames['read']} kept"
    if manifest["cuts"]:
        yield f"cuts between shots: {manifest['cuts']} (a higher --cut finds fewer)"
    if near := manifest["clips near the threshold"]:
        yield f"clips whose order is hardly visible: {near}; look at {out / PAGE}, then --drop the bad ones"
    for reason, count in frames["left_out"].items():
        yield f"  {counted(count, 'frame')} left out: {_with_advice(reason)}"
    for reason, count in manifest["left_out"].items():
        kinds = f", {_listed(manifest['unread_kinds'])}" if reason == "unreadable" else ""
        lost = "1 clip or file" if count == 1 else f"{count} clips or files"
        yield f"  {lost} left out: {_with_advice(reason)}{kinds}, listed in {out / DROPPED}"
    for reason, count in manifest["failed_rows"].items():
        yield f"  {counted(count, 'row')} not made: {_with_advice(reason)}"
    for name, counts in rows["wrong orders by Kendall distance"].items():
        if total := sum(counts.values()):
            shares = ", ".join(f"{apart}={count / total:.2f}" for apart, count in counts.items())
            yield f"wrong orders by Kendall distance, {name}: {shares}"
    yield from shared_pictures(manifest, str(out))
    if problem := lone_scene(rows["scenes"]):
        yield f"warning: {problem}"
    yield f"for more rows: {_more(manifest['settings'])}"
    for split, verdict in manifest["audit"].items():
        yield f"audit of {split}: {verdict}"
    yield f"{out}: written; look at the rows:"
    yield from view_commands(out, rows["splits"])


def shared_pictures(manifest: Mapping[str, Any], out: str) -> Iterator[str]:
    """A line for each split that has pictures of another one, with the command that finds the rows."""
    splits = manifest["rows"]["splits"]
    for split, found in manifest["shared_pictures"].items():
        largest = max((name for name in splits if name != split), key=lambda name: splits[name])
        here, there = shlex.quote(f"{out}@{split}"), shlex.quote(f"{out}@{largest}")
        yield (
            f"shared pictures: {found['pictures']} of {found['of']} in {split}, in {found['clips']} of "
            f"{found['of_clips']} clips, look like one of another split; "
            f"the rows: tpru data validate {here} --against {there}"
        )


# What brings back frames, clips and rows that are left out for a reason.
_ADVICE = {
    "blank": "a lower --min-contrast keeps more",
    "blurred": "a lower --min-sharpness keeps more",
    "frozen": "a lower --min-change keeps more",
    "too small a change": "a lower --min-change keeps more",
    "duplicate": "a lower --min-bits keeps more",
    "too few frames": "more frames are needed, or fewer --steps",
    "unreadable": "mend or remove the files",
    "id": "give each a name of its own",
    "leak": "they show pictures of --against",
    "fewer frames than steps": "fewer --steps, or more frames a clip",
    "cyclic": "no order can be seen",
    "too few wrong candidates": "more clips of the same scene, or a higher --max-foreign",
    "no other steps": "longer clips, or fewer --rows-per-clip",
    "not sound": "the text lists options of its own",
    "order not visible": "a lower --min-order keeps more",
    "in short shots": "a smaller --every, or fewer --steps",
}


def _with_advice(reason: str) -> str:
    return f"{reason} ({_ADVICE[reason]})" if reason in _ADVICE else reason


def _more(settings: Mapping[str, Any]) -> str:
    """Options that give more rows of the same source."""
    rows, every = settings["options"]["rows_per_clip"], settings["sampling"]["every"]
    denser = f"a smaller --every than {every:g}" if every else "a smaller --every"
    return f"more sources, --rows-per-clip {rows + 1}, shorter clips (--clip-frames), for videos {denser}"


def _table(left: str, right: str, lines: Mapping[str, object]) -> list[str]:
    return [f"| {left} | {right} |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in lines.items()), ""]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
