"""Rows of a source, read a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from tpru_verl.data.images import Header, read_header
from tpru_verl.data.source.cells import (
    cells_of_text,
    image_bytes,
    image_cells,
    is_missing,
    is_text_or_number,
)
from tpru_verl.data.source.forms import ANSWERS, OPTIONAL, Form, Unit
from tpru_verl.data.source.messages import read_chat, read_messages
from tpru_verl.data.source.named import as_order, cells_of, question_and_answer, with_given_names
from tpru_verl.data.source.options import (
    filled_columns,
    is_missing_option,
    listed,
    option_columns,
    options_in,
    table_options,
    text_of,
)
from tpru_verl.data.source.parts import Part, plain_rows
from tpru_verl.grading import read_answer
from tpru_verl.sample import IMAGE_TAG, Task, parse_options, recognise_task
from tpru_verl.terminal import line_of

BATCH_ROWS = 64  # in memory at once, with their images


@dataclass(frozen=True)
class Row:
    """One row as it came: nothing checked yet."""

    file: str
    number: int
    problem: object  # text, with veRL's messages as one, where the row is sound
    answer: object
    cells: object  # a list of image cells where the row is sound
    folder: Path | None
    given: Mapping[str, object]  # those of OPTIONAL that the source has
    form: Form
    messages: list[dict[str, str]] | None = None  # of a row with a prompt of its own
    unread: str = ""  # why a conversation cannot be read: "found ..., expected ..."
    fields: tuple[str, ...] = ()  # that hold something
    beside: tuple[str, ...] = ()  # columns of options, by their names, that hold something

    @property
    def place(self) -> str:
        return f"{self.file} row {self.number}"

    @cached_property
    def extra(self) -> Mapping[str, object]:
        """`extra_info`, without the keys that other rows have and this one has not."""
        extra = self.given.get("extra_info")
        return {k: v for k, v in extra.items() if v is not None} if isinstance(extra, Mapping) else {}

    def value(self, *names: str) -> object:
        """The first of `names` that the row has, as a column or in `extra_info`, as it came; else None."""
        for name in names:
            for fields in (self.given, self.extra):
                if not is_missing(value := fields.get(name)):
                    return value
        return None

    def field(self, *names: str) -> str:
        """As `value`, as text; "" where none is there or it is neither text nor a number."""
        value = self.value(*names)
        return str(value) if is_text_or_number(value) else ""

    @cached_property
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
        """As `images`, without copying what lies in a table; files are read once.

        Raises ValueError, as "field: found ..., expected ...".
        """
        cells = cast("Sequence[object]", self.cells)
        return [self._view(i, cell) for i, cell in enumerate(cells)]

    def _view(self, i: int, cell: object) -> bytes | memoryview:
        try:
            return cell if isinstance(cell, memoryview) else image_bytes(cell, self.folder)
        except ValueError as error:
            # The message quotes a text, which tells images apart; others are told apart by their number.
            number = "" if isinstance(cell, str) else f"[{i}]"
            elsewhere = "; --image-root names another folder" if self._may_lie_elsewhere(cell) else ""
            raise ValueError(f"{self.form.images}{number}: {error}{elsewhere}") from error

    def _may_lie_elsewhere(self, cell: object) -> bool:
        return self.form.kind in ("chat", "named") and self.form.image_root is None and isinstance(cell, str)

    @cached_property
    def headers(self) -> list[Header | str]:
        """Of each image, read once: its header, or why there is none. Raises as `views`."""
        return [_header_or_reason(view) for view in self.views]


def _header_or_reason(data: bytes | memoryview) -> Header | str:
    try:
        return read_header(data)
    except ValueError as error:
        return str(error)


def read_rows(unit: Unit, form: Form) -> Iterator[Row]:
    """The unit's rows, BATCH_ROWS in memory at a time. Raises ValueError where the file is broken."""
    for rows, _ in read_batches(unit, form):
        yield from rows


def read_batches(unit: Unit, form: Form) -> Iterator[tuple[list[Row], pa.Array | None]]:
    """As `read_rows`, BATCH_ROWS at once, with the column of their images where the source is a table."""
    part, number = unit.part, unit.first
    try:
        for records, images in _records(unit, form):
            yield [row_of(part, number + i, record, form) for i, record in enumerate(records)], images
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
            wanted = [c for c in file.schema_arrow.names if c in {*columns_read(form)}]
            wanted = None if form.kind in ("chat", "named") else wanted
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[unit.row_group], columns=wanted):
                yield _of_table(pa.Table.from_batches([batch]), form)
    else:
        plain = plain_rows(part)
        while chunk := list(islice(plain, BATCH_ROWS)):
            yield chunk, None


def _of_table(table: pa.Table, form: Form) -> tuple[list[dict[str, object]], pa.Array | None]:
    if form.kind in ("chat", "named"):  # whose images may lie in several columns, or inside messages
        return table.to_pylist(), None
    wanted = [name for name in table.column_names if name in columns_read(form)]
    return records_of(table.select(wanted), form.images), table[form.images].chunk(0)


def records_of(table: pa.Table, images: str) -> list[dict[str, object]]:
    """A table's rows, the column `images` as `image_cells` gives it."""
    records = table.drop_columns([images]).to_pylist()
    cells = (cell for chunk in table[images].chunks for cell in image_cells(chunk))
    for record, cell in zip(records, cells, strict=True):
        record[images] = cell
    return records


def columns_read(form: Form) -> tuple[str, ...]:
    """Names of all columns that the reader of this form uses where a source has them."""
    options = ("hint", *ascii_uppercase) if form.kind == "vlmevalkit" else ()
    kept = ("prompt",) if form.kind == "published" else ()  # see `_keeps_messages`
    return (form.problem, form.answer, form.images, *OPTIONAL, *form.options, *options, *kept)


def row_of(part: Part, number: int, record: Mapping[str, object], form: Form) -> Row:
    """The row that a record of the part's columns is; `number` counts from 0 in the part.

    Raises ValueError for an answer of a table that may be an order or ranks.
    """
    record = with_given_names(record) if form.kind in ("chat", "named") else record
    given = {name: record[name] for name in OPTIONAL if record.get(name) is not None}
    problem, answer, cells = record.get(form.problem), record.get(form.answer), record.get(form.images)
    beside = option_columns(tuple(record), form.used)  # of this row: those of json differ from row to row
    messages, unread = None, ""
    if form.kind == "published" and _keeps_messages(record):
        messages, unread = read_messages(record["prompt"])
    if form.kind == "verl":
        messages, unread = read_messages(problem)
        problem = "\n".join(message["content"] for message in messages)
        answer = answer.get("ground_truth") if isinstance(answer, Mapping) else None
    if form.kind == "chat":
        chat = read_chat(problem)
        messages, unread = None if chat.is_plain else chat.messages, chat.unread
        problem = "\n".join(message["content"] for message in chat.messages)
        cells, unread = _own_cells(part, record, form, unread)
        cells = cells or chat.images
        answer = chat.answer if form.answer == form.problem else answer
        answer = as_order(answer, form.answers, len(cells))
        if form.columns and chat.images and cells is not chat.images:
            unread = unread or f"found pictures, and others in {form.images}, expected one of them"
        unread = unread or _late_column(record, form)
    elif form.kind == "named":
        cells, unread = _own_cells(part, record, form, unread)
        place = f"{part.name} row {number}"
        problem, answer = question_and_answer(place, record, form, options_in(record, beside), len(cells))
    elif isinstance(cells, str):
        cells = cells_of_text(cells)
    elif isinstance(cells, (bytes, Mapping)):
        cells = [cells]
    if form.kind == "vlmevalkit":
        problem = _problem_of_table(record, len(cells) if isinstance(cells, list) else 0)
    own = form.fixed or messages or form.kind == "chat"  # a text that stays as it came
    if beside and isinstance(problem, str) and not (own or parse_options(problem)):
        problem = listed(problem, options_in(record, beside))
    if not form.fixed and form.answers not in ("orders", "ranks"):
        answer = _as_letter(answer, problem)
    fields = tuple(name for name, value in record.items() if value is not None)
    folder = form.image_root or part.folder
    return Row(
        part.name,
        number,
        problem,
        answer,
        cells,
        folder,
        given,
        form,
        messages or None,
        unread,
        fields,
        filled_columns(record, beside),
    )


def _as_letter(answer: object, problem: object) -> object:
    """The letter that `(B)`, `Option B` or the text of an option means; any other answer as it came.

    Whoever counts, measures or rewards by comparing texts then sees what the grader reads.
    """
    if not isinstance(answer, str) or not isinstance(problem, str):
        return answer
    try:
        read = read_answer(answer, parse_options(problem) or None, recognise_task(problem))
    except ValueError:  # the judge of a row says so
        return answer
    return read if len(read) == 1 else answer


def _own_cells(part: Part, record: Mapping[str, object], form: Form, unread: str) -> tuple[list[object], str]:
    """Images of columns that were named, and why the row cannot be read: `unread`, or what is wrong here."""
    try:
        return cells_of(record, form, form.image_root or part.folder), unread
    except ValueError as error:
        return [], unread or str(error)


def _late_column(record: Mapping[str, object], form: Form) -> str:
    """Why a row of messages cannot be read that has a column which the first row has not; else ""."""
    name = next((n for n in record if n.casefold() in form.late and not is_missing(record[n])), None)
    if name is None:
        return ""
    expected = f"{name} in its first row, too (null where it has none)"
    if name.casefold() in ANSWERS:
        expected = f"{name} in all rows, or --answer-key {form.problem} for the assistant's answers"
    found = f"found {name} beside it, which the first row does not have"
    return f"{found}, expected one form in the whole file: {expected}"


def _keeps_messages(record: Mapping[str, object]) -> bool:
    """Whether `tpru data prepare` left the messages of a source in veRL's form as they were."""
    extra = record.get("extra_info")
    return "prompt" in record and isinstance(extra, Mapping) and extra.get("prompt_template") == ""


def _problem_of_table(record: Mapping[str, object], images: int) -> object:
    """Question and options of VLMEvalKit's table as one text; images that it does not place come first."""
    if not isinstance(record.get("question"), str):
        return record.get("question")
    question, options = table_question(record), table_options(record)
    if (missing := images - question.count(IMAGE_TAG)) == images:
        question = IMAGE_TAG * missing + question
    return listed(question, options)


def table_question(record: Mapping[str, object]) -> str:
    """The question of a row of VLMEvalKit's table, after its hint where it has one."""
    question, hint = (text_of(record.get(name)) for name in ("question", "hint"))
    return question if is_missing_option(hint) else f"Hint: {hint}\n{question}"
