"""Where rows come from: files, folders and Hub ids, read a few rows at a time, in every form that is about.

Nothing here judges a row (`validate` does); what cannot be read raises ValueError with file and reason.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tpru_verl.data.source.cells import cells_of_text, image_bytes, image_cells
from tpru_verl.data.source.hub import commit_of, load_hub
from tpru_verl.errors import line_of
from tpru_verl.sample import IMAGE_TAG, Task, recognise_task

if TYPE_CHECKING:
    import datasets

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}  # the kinds that veRL trains on
SUFFIXES = (*KINDS, ".tsv")
BATCH_ROWS = 64  # in memory at once, with their images
HUB_SLICE = 512  # rows of a Hub data set that are one unit of work
OPTIONAL = ("task", "scene", "source_id", "id", "data_source", "extra_info", "agent_name")

# Column names met in published sets, in the order in which they are preferred.
PROBLEMS, ANSWERS = ("problem", "question", "query"), ("answer", "ground_truth", "solution", "label")
IMAGES = ("images", "image", "image_paths", "image_path", "file_names", "file_name")
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?![a-z])")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TSV_OPTIONS = "ABCDEFGH"
_LONGEST_CELL = 256 * 2**20


@dataclass(frozen=True)
class Keys:
    """Names of columns that the user gave; what is None is detected."""

    problem: str | None = None
    answer: str | None = None
    images: str | None = None


@dataclass(frozen=True)
class Form:
    """How the columns of a source are to be read.

    `kind` is `published` (problem, answer, images), `verl` (prompt, images, reward_model) or `vlmevalkit`
    (question, A, B, ..., answer, image in base64, no tags).
    """

    kind: str
    problem: str
    answer: str
    images: str

    def __str__(self) -> str:
        return f"problem={self.problem}, answer={self.answer}, images={self.images} ({self.kind} form)"


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


@dataclass(frozen=True)
class Unit:
    """A piece of a part that one worker reads: a row group, a slice of a Hub data set, or a whole file."""

    part: Part
    first: int  # number of its first row in the part
    rows: int | None  # None where only reading tells
    row_group: int = 0


@dataclass(frozen=True)
class Row:
    """One row as it came: nothing checked yet."""

    file: str
    number: int
    problem: object
    answer: object
    cells: object  # a list of image cells where the row is sound
    folder: Path | None
    given: Mapping[str, object]  # those of OPTIONAL that the source has

    @property
    def extra(self) -> Mapping[str, object]:
        """`extra_info`, without the keys that other rows have and this one has not."""
        extra = self.given.get("extra_info")
        return {k: v for k, v in extra.items() if v is not None} if isinstance(extra, Mapping) else {}

    def field(self, *names: str) -> str:
        """The first of `names` that the row has, as a column or in `extra_info`; "" where none is there."""
        values = (self.given.get(name) or self.extra.get(name) for name in names)
        return next((str(value) for value in values if value), "")

    @property
    def task(self) -> Task | None:
        """The task that the row names or its text poses. Raises ValueError for a name that is none."""
        return Task(given) if (given := self.field("task")) else recognise_task(str(self.problem))

    @property
    def source_id(self) -> str:
        return self.field("source_id")

    @property
    def row_id(self) -> str:
        return self.field("row_id", "id") or f"{Path(self.file).name}:{self.number}"

    def images(self) -> list[bytes]:
        """Encoded files, as they came. Raises ValueError for a cell that holds none."""
        return [bytes(view) for view in self.views]

    @cached_property
    def views(self) -> list[bytes | memoryview]:
        """As `images`, without copying what lies in a table; files are read once."""
        cells = cast("Sequence[object]", self.cells)
        return [cell if isinstance(cell, memoryview) else image_bytes(cell, self.folder) for cell in cells]


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


def columns_of(part: Part) -> list[str]:
    """The part's columns, from its schema or its first row. Raises ValueError for what cannot be read."""
    if part.hub is not None:
        return list(part.hub.column_names)
    assert part.path is not None
    try:
        if part.path.suffix == ".parquet":
            return list(pq.read_schema(part.path).names)
    except Exception as error:
        raise ValueError(f"{part.name}: not readable as parquet: {line_of(error)}") from error
    return list(next(_plain_rows(part), {}))


def form_of(part: Part, keys: Keys) -> Form:
    """Which columns hold what. Raises ValueError, with the columns found, where that can't be decided."""
    found = columns_of(part)
    if not found:
        raise ValueError(f"{part.name}: found 0 rows, expected at least 1")
    named = (keys.problem, keys.answer, keys.images)
    if missing := [name for name in named if name and name not in found]:
        raise ValueError(f"{part.name}: found columns {', '.join(found)}; expected {missing[0]}")
    images = keys.images or next((name for name in IMAGES if name in found), None)
    # `tpru data prepare` writes both forms: the question as it was counts, not the prompt made of it.
    published = {PROBLEMS[0], ANSWERS[0]} <= set(found)
    if images and not (keys.problem or keys.answer or published) and {"prompt", "reward_model"} <= set(found):
        return Form("verl", "prompt", "reward_model", images)
    problem = keys.problem or next((name for name in PROBLEMS if name in found), None)
    answer = keys.answer or next((name for name in ANSWERS if name in found), None)
    if problem is None or answer is None or images is None:
        wanted = zip(("problem", "answer", "images"), (problem, answer, images), strict=True)
        unknown = " and ".join(f"--{key}-key" for key, name in wanted if name is None)
        raise ValueError(f"{part.name}: found columns {', '.join(found)}; say with {unknown} which to read")
    options = problem == "question" and {"A", "B"} <= set(found)
    return Form("vlmevalkit" if options else "published", problem, answer, images)


def units_of(part: Part) -> list[Unit]:
    """The part in pieces, each small enough to be read by itself. Raises ValueError for a broken file."""
    if part.hub is not None:
        starts = range(0, len(part.hub), HUB_SLICE)
        return [Unit(part, start, min(HUB_SLICE, len(part.hub) - start)) for start in starts]
    assert part.path is not None
    if part.path.suffix != ".parquet":
        return [Unit(part, 0, None)]
    try:
        metadata = pq.read_metadata(part.path)
    except Exception as error:
        raise ValueError(f"{part.name}: not readable as parquet: {line_of(error)}") from error
    units, first = [], 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        units.append(Unit(part, first, rows, group))
        first += rows
    return units


def read_rows(unit: Unit, form: Form) -> Iterator[Row]:
    """The unit's rows, BATCH_ROWS in memory at a time. Raises ValueError where the file is broken."""
    for rows, _ in read_batches(unit, form):
        yield from rows


def read_batches(unit: Unit, form: Form) -> Iterator[tuple[list[Row], pa.Array | None]]:
    """As `read_rows`, BATCH_ROWS at once, with the column of their images where the source is a table."""
    part, number = unit.part, unit.first
    try:
        for records, images in _records(unit, form):
            yield [_row(part, number + i, record, form) for i, record in enumerate(records)], images
            number += len(records)
    except ValueError:
        raise
    except Exception as error:  # pyarrow's and the Hub's many kinds
        kind = part.path.suffix[1:] if part.path else "a Hub data set"
        raise ValueError(f"{part.name}: not readable as {kind}: {line_of(error)}") from error


def all_columns(part: Part) -> Iterator[dict[str, object]]:
    """Every row with all its columns as they came, BATCH_ROWS in memory at a time.

    Raises ValueError where the file is broken.
    """
    try:
        if part.hub is not None:
            for table in cast("Iterator[pa.Table]", part.hub.with_format("arrow").iter(BATCH_ROWS)):
                yield from table.to_pylist()
        elif part.path is not None and part.path.suffix == ".parquet":
            with pq.ParquetFile(part.path) as file:
                for batch in file.iter_batches(BATCH_ROWS):
                    yield from batch.to_pylist()
        else:
            yield from _plain_rows(part)
    except ValueError:
        raise
    except Exception as error:  # pyarrow's and the Hub's many kinds
        raise ValueError(f"{part.name}: not readable: {line_of(error)}") from error


def _records(unit: Unit, form: Form) -> Iterator[tuple[list[dict[str, object]], pa.Array | None]]:
    part = unit.part
    if part.hub is not None:
        chosen = part.hub.select(range(unit.first, unit.first + cast(int, unit.rows))).with_format("arrow")
        for table in cast("Iterator[pa.Table]", chosen.iter(BATCH_ROWS)):
            yield _of_table(table.combine_chunks(), form)
    elif part.path is not None and part.path.suffix == ".parquet":
        with pq.ParquetFile(part.path) as file:
            wanted = [c for c in file.schema_arrow.names if c in {*_read_columns(form)}]
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[unit.row_group], columns=wanted):
                yield _of_table(pa.Table.from_batches([batch]), form)
    else:
        plain = _plain_rows(part)
        while chunk := list(islice(plain, BATCH_ROWS)):
            yield chunk, None


def _of_table(table: pa.Table, form: Form) -> tuple[list[dict[str, object]], pa.Array]:
    wanted = [name for name in table.column_names if name in _read_columns(form) and name != form.images]
    records = table.select(wanted).to_pylist()
    images = table[form.images].chunk(0)
    for record, cells in zip(records, image_cells(images), strict=True):
        record[form.images] = cells
    return records, images


def _read_columns(form: Form) -> tuple[str, ...]:
    options = tuple(_TSV_OPTIONS) if form.kind == "vlmevalkit" else ()
    return (form.problem, form.answer, form.images, *OPTIONAL, *options)


def _plain_rows(part: Part) -> Iterator[dict[str, object]]:
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


def _row(part: Part, number: int, record: Mapping[str, object], form: Form) -> Row:
    given = {name: record[name] for name in OPTIONAL if record.get(name) is not None}
    problem, answer, cells = record.get(form.problem), record.get(form.answer), record.get(form.images)
    if form.kind == "verl":
        problem = messages_text(problem)
        answer = answer.get("ground_truth") if isinstance(answer, Mapping) else None
    if isinstance(cells, str):
        cells = cells_of_text(cells)
    elif isinstance(cells, (bytes, Mapping)):
        cells = [cells]
    if form.kind == "vlmevalkit":
        problem = _problem_of_tsv(record, len(cells) if isinstance(cells, list) else 0)
    return Row(part.name, number, problem, answer, cells, part.folder, given)


def _problem_of_tsv(record: Mapping[str, object], images: int) -> str:
    """Question and options of VLMEvalKit's table as one text; images that it does not place come first."""
    question = str(record["question"])
    if (missing := images - question.count(IMAGE_TAG)) == images:
        question = IMAGE_TAG * missing + question
    texts = ((letter, record.get(letter)) for letter in _TSV_OPTIONS)
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in texts if text not in (None, ""))])


def messages_text(prompt: object) -> str:
    """The text of a conversation in veRL's form; "" for anything else."""
    if not isinstance(prompt, list):
        return ""
    return "\n".join(str(m["content"]) for m in prompt if isinstance(m, Mapping) and m.get("content"))
