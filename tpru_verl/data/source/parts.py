"""Parts of a source: files, folders and data sets of the Hub, and their splits."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tpru_verl.data.source.hub import commit_of, load_hub
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    import datasets


KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}  # the kinds that veRL trains on


SUFFIXES = (*KINDS, ".tsv")


_SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?![a-z])")


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


_LONGEST_CELL = 256 * 2**20


@dataclass(frozen=True)
class Part:
    """One file, or one data set of the Hub."""

    name: str  # as messages call it
    path: Path | None  # None for the Hub
    hub: datasets.Dataset | None = field(default=None, compare=False)
    commit: str | None = None  # of the Hub's repository

    @property
    def folder(self) -> Path | None:
        """Where relative paths of images start; None for the Hub, whose rows carry bytes."""
        return self.path.parent if self.path else None


def parts_of(source: str, *, revision: str | None = None) -> list[Part]:
    """The files that `source` stands for: a file, a folder, or a Hub id; the latter two take `@split`.

    Raises FileNotFoundError where there is nothing, ValueError for several splits or an unreadable data set.
    """
    path, split = Path(source).expanduser(), ""
    if not path.exists() and "@" in source:
        head, _, split = source.rpartition("@")
        path = Path(head).expanduser()
    if path.is_file():
        return [Part(str(path), path)]
    if path.is_dir():
        return [Part(str(shard), shard) for shard in _shards(path, split)]
    if _HUB_ID.fullmatch(str(path)) and path.suffix not in SUFFIXES:
        commit = commit_of(str(path), revision)
        return [Part(source, None, load_hub(str(path), split, revision=commit), commit)]
    raise FileNotFoundError(f"{source}: no such file or folder; expected {', '.join(SUFFIXES)} or a Hub id")


def _shards(folder: Path, split: str) -> list[Path]:
    """Data files below `folder`, parquet before json (which beside parquet is metadata), of one split.

    A file's split is what its name, or its folder's name, begins with: `train-00000-of-00002.parquet`.
    """
    visible = [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    ]
    files = next((found for suffix in SUFFIXES if (found := [p for p in visible if p.suffix == suffix])), [])
    if not files:
        raise FileNotFoundError(f"{folder}: found no file that ends in {', '.join(SUFFIXES)}")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        names = (file.stem, *file.relative_to(folder).parts[:-1])
        pattern = re.compile(rf"({re.escape(split)})(?![A-Za-z])") if split else _SPLIT
        match = next((m for name in names if (m := pattern.match(name))), None)
        by_split.setdefault(match[1] if match else "", []).append(file)
    if split:
        if split not in by_split:
            raise FileNotFoundError(f"{folder}@{split}: found {', '.join(p.name for p in files[:10])}")
        return by_split[split]
    if len(by_split) > 1:  # training and test rows must never be read as one
        splits = ", ".join(f"@{name}" if name else "files that name none" for name in by_split)
        raise ValueError(f"{folder}: found several splits, expected one; name it after the folder: {splits}")
    return files


def plain_rows(part: Part) -> Iterator[dict[str, object]]:
    """Rows of a json, jsonl or tsv file. Raises ValueError with the line that is none."""
    path = cast(Path, part.path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{part.name}: found {path.suffix or 'no suffix'!r}, expected {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{part.name}: found an empty file, expected rows")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".tsv":
                csv.field_size_limit(_LONGEST_CELL)
                for number, record in enumerate(csv.DictReader(file, delimiter="\t")):
                    if None in record or None in record.values():
                        raise ValueError(f"{part.name} row {number}: found more or fewer cells than columns")
                    yield dict(record)
            else:
                yield from _json_rows(part, file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{part.name}: not readable as {path.suffix[1:]}: {line_of(error)}") from error


def _json_rows(part: Part, file: io.TextIOBase) -> Iterator[dict[str, object]]:
    start = file.read(64).lstrip()[:1]
    file.seek(0)
    if start == "[":
        try:
            records = enumerate(json.load(file))
        except ValueError as error:
            raise ValueError(f"{part.name}: not readable as json: {line_of(error)}") from error
    else:
        records = ((n, _json_line(part, n, text)) for n, text in enumerate(file) if text.strip())
    for number, record in records:
        if not isinstance(record, dict):
            raise ValueError(f"{part.name} row {number}: found {type(record).__name__}, expected an object")
        yield record


def _json_line(part: Part, number: int, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{part.name} line {number + 1}: not readable as json: {line_of(error)}") from error
