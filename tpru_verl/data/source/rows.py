"""Rows of a source, read a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from tpru_verl.data.source.cells import cells_of_text, image_bytes, image_cells
from tpru_verl.data.source.forms import OPTIONAL, Form, Unit
from tpru_verl.data.source.parts import Part, plain_rows
from tpru_verl.sample import IMAGE_TAG, Task, recognise_task
from tpru_verl.terminal import line_of

BATCH_ROWS = 64  # in memory at once, with their images


_TSV_OPTIONS = "ABCDEFGH"


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
            yield from plain_rows(part)
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
        plain = plain_rows(part)
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
