"""Where rows come from: files, folders and Hub ids, read a few rows at a time, in every form that is about.

Nothing here judges a row (`validate` does); what cannot be read raises ValueError with file and reason.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
_DATA_URI = re.compile(r"data:image/?[\w.+-]*;base64,")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{64,}={0,2}")  # long enough to be a picture, and no path
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
        return [bytes(view) for view in self.views()]

    def views(self) -> list[bytes | memoryview]:
        """As `images`, without copying what lies in a table."""
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
        commit = _commit_of(str(path), revision)
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


def _commit_of(name: str, revision: str | None) -> str | None:
    """What a branch stands for now, so that one commit is read and written down."""
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(name, revision=revision).sha
    except Exception:  # no network, or no such data set: `load_hub` has the cache, or the message
        return revision


def load_hub(
    name: str, split: str = "", *, revision: str | None = None, config: str | None = None
) -> datasets.Dataset:
    """A data set of the Hub, on disk and not in memory; `split` may be left out where there is only one.

    Raises ValueError for a split that is not there, and with the Hub's reason for what cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{name}: reading from the Hub needs `pip install datasets`") from error
    try:
        splits = [str(s) for s in datasets.get_dataset_split_names(name, config, revision=revision)]
    except Exception as error:
        raise ValueError(
            f"{name}: no file or folder of this name, and not readable from the Hub: {line_of(error)}"
        ) from error
    if (split or len(splits) != 1) and split not in splits:
        found = ", ".join(f"{name}@{s}" for s in splits)
        raise ValueError(f"{name}{'@' * bool(split)}{split}: expected one of its splits: {found}")
    try:
        rows = datasets.load_dataset(name, config, split=split or splits[0], revision=revision)
    except Exception as error:
        raise ValueError(f"{name}: not readable from the Hub: {line_of(error.__cause__ or error)}") from error
    return undecoded(cast("datasets.Dataset", rows))


def undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows with images as encoded bytes: decoding what is only passed on would be for nothing."""
    import datasets

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            rows = rows.cast_column(name, type(feature)(datasets.Image(decode=False)))
    return rows


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


def image_cells(images: pa.Array) -> Iterator[object]:
    """Cells of each row of a column of images: views into the table, not copies, where it has all the bytes.

    `images`: a list, one element a row, of binary or of {bytes, path}; anything else comes as Python has it.
    """
    files = images.flatten() if isinstance(images, pa.ListArray) else None
    if files is not None and pa.types.is_struct(files.type) and files.type.get_field_index("bytes") >= 0:
        # `field` forgets a slice's offset, `flatten` keeps it.
        files = files.flatten()[files.type.get_field_index("bytes")]
    if files is None or files.null_count or images.null_count or not pa.types.is_binary(files.type):
        yield from images.to_pylist()
        return
    _, starts, data = files.buffers()
    ends = np.frombuffer(starts, np.int32)[files.offset : files.offset + len(files) + 1].tolist()
    whole = memoryview(data).cast("B") if data else memoryview(b"")
    views = [whole[start:end] for start, end in pairwise(ends)]
    rows = np.cumsum([0, *images.value_lengths().to_pylist()]).tolist()
    yield from (views[start:end] for start, end in pairwise(rows))


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


def cells_of_text(text: str) -> list[object]:
    """One picture or path, or a list of them written out, as tables without nested cells hold it."""
    text = text.strip()
    if not text.startswith("["):
        return [text]
    inner = (quoted[1] or quoted[2] for quoted in re.finditer(r"'([^']*)'|\"([^\"]*)\"", text))
    return [cell for cell in inner if cell]


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


def image_bytes(cell: object, folder: Path | None) -> bytes:
    """The encoded file of a cell: bytes, {bytes, path}, base64, Pillow's picture, a path inside `folder`.

    Raises ValueError for anything else.
    """
    if isinstance(cell, Mapping):
        cell = cell["path"] if cell.get("bytes") is None and "path" in cell else cell.get("bytes")
    if isinstance(cell, (bytes, memoryview)):
        return bytes(cell)
    if callable(save := getattr(cell, "save", None)):
        buffer = io.BytesIO()
        save(buffer, "PNG")
        return buffer.getvalue()
    if not isinstance(cell, str):
        found = type(cell).__name__
        raise ValueError(f"found {found}, expected bytes, {{bytes, path}}, base64 or a path")
    if uri := _DATA_URI.match(cell):
        return _decoded(cell[uri.end() :])
    if _BASE64.fullmatch(cell):
        return _decoded(cell)
    if folder is None:
        raise ValueError(f"found the path {cell!r}, expected the image's bytes in rows from the Hub")
    path = (folder / cell).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"found {cell!r}, expected a path inside {folder}")
    if not path.is_file():
        raise ValueError(f"found {cell!r}, but there is no such file in {folder}")
    return path.read_bytes()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"found base64 that cannot be decoded: {error}") from error


def line_of(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
