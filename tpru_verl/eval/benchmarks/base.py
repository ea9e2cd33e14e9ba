"""A benchmark, and the reader of its rows: from the layout of the Hub, or from VLMEvalKit's table."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from tpru_verl.data.source.cells import cells_of_text, image_bytes
from tpru_verl.data.source.forms import columns_of
from tpru_verl.data.source.hub import load_hub
from tpru_verl.data.source.options import read_written
from tpru_verl.data.source.parts import Part, parts_of
from tpru_verl.data.source.rows import (
    all_columns,
    is_missing,
    is_text_or_number,
    table_options,
    table_question,
)
from tpru_verl.eval.item import Item, posed
from tpru_verl.files import whole
from tpru_verl.grading import read_answer
from tpru_verl.hub import data_cached, offline
from tpru_verl.terminal import line_of

LETTER = "Answer with the option's letter from the given choices directly."
SELECT = "Please select the correct answer from the options above."  # VLMEvalKit's, for most of its tables
FOLDER = "LMUData"  # the environment variable that names VLMEvalKit's folder
_REFERENCE = 64  # characters: a shorter cell of VLMEvalKit's `image` names the row that has the picture
_ROTATED = 1_000_000  # VLMEvalKit numbers the rotations of a circular table from here


@dataclass(frozen=True)
class Record:
    """One row as it came; `folder` is where its paths start."""

    place: str  # file and row, as messages call them
    number: int
    cells: Mapping[str, object]
    folder: Path | None

    def text(self, *names: str) -> str:
        """The first of `names` that holds text or a number, as text; "" where none does."""
        values = (self.cells.get(name) for name in names)
        texts = (str(value).strip() for value in values if is_text_or_number(value) and not is_missing(value))
        return next(texts, "")

    def images(self, *names: str) -> list[bytes]:
        """Encoded files of the columns, in order. Raises ValueError for a cell that holds none."""
        found: list[bytes] = []
        for name in names:
            cell = self.cells.get(name)
            if isinstance(cell, str) and cell:
                cell = cells_of_text(cell)
            for part in cell if isinstance(cell, list) else [] if is_missing(cell) else [cell]:
                found.append(image_bytes(part, self.folder))
        return found

    def options(self) -> dict[str, str]:
        """Texts of the columns A, B, ..., as far as they are filled."""
        return table_options(self.cells)


@dataclass(frozen=True)
class Layout:
    """One layout of a table: the columns it must have, and the function that turns a row into an item.

    The function returns None for a row that is left out.
    """

    columns: tuple[str, ...]  # that must be there
    item: Callable[[Record], Item | None]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: where its rows come from, how many were published, and how its authors ask.

    `rows` is None for rows of the user, which nobody published. `hub` is the Hub id and `revision` the commit
    that was looked at (None: whatever is newest, and written down); `hub_file` is the file to take where the
    repository is no data set that `datasets` loads, `url` that of a table where the Hub has none; `tsv` is
    VLMEvalKit's name and `md5` its checksum of the table.
    """

    name: str
    title: str
    hub: str
    rows: int | None
    layouts: tuple[Layout, ...]
    instruction: str | Callable[[Item], str] = LETTER
    template: str | None = None  # of the style `benchmark`, in place of `instruction`
    revision: str | None = None
    split: str = "test"
    configs: tuple[str, ...] = ()
    hub_file: str = ""
    url: str = ""  # of the table, where the Hub has no such rows
    note: str = ""  # which rows are left out
    tsv: str = ""
    md5: str = ""
    read: Callable[[Part], Iterator[Item]] | None = None  # where the package's own rows are read


@dataclass(frozen=True)
class Loaded:
    """The items of a benchmark, their origin, and notes for the user.

    `whole`: these are the rows that were published, all of them, so that published numbers may stand beside.
    `repeated`: the ids that several rows have in the source; the items have distinct ones.
    """

    benchmark: Benchmark
    items: list[Item]
    origin: str
    revision: str | None
    notes: list[str] = field(default_factory=list)
    whole: bool = False
    repeated: list[str] = field(default_factory=list)


def load(benchmark: Benchmark, data: str | None = None, *, revision: str | None = None) -> Loaded:
    """All items: from `data` (file, folder, Hub id), else from $LMUData, else from the Hub.

    Raises ValueError or FileNotFoundError in one line for what cannot be read or lacks columns.
    """
    parts = _parts(benchmark, data, revision)
    items: list[Item] = []
    left_out = 0
    for part in parts:
        for item in (benchmark.read or _reader(benchmark))(part):
            if item is None:
                left_out += 1
            else:
                items.append(item)
    if not items:
        expected = benchmark.rows or "at least 1"
        raise ValueError(f"{benchmark.name}: {parts[0].name}: found 0 rows, expected {expected}")
    notes = [f"{left_out} rows left out: {benchmark.note}"] if left_out else []
    mismatches = _mismatches(benchmark, parts, len(items))
    whole = benchmark.rows is not None and not mismatches
    origin = data or parts[0].name
    repeated = [name for name, times in Counter(item.id for item in items).items() if times > 1]
    notes += mismatches
    return Loaded(benchmark, _distinct(items), origin, parts[0].commit, notes, whole, repeated)


def _parts(benchmark: Benchmark, data: str | None, revision: str | None) -> list[Part]:
    lmu = Path(os.environ.get(FOLDER, "~/LMUData")).expanduser() / f"{benchmark.tsv}.tsv"
    if data is None and benchmark.tsv and lmu.is_file():
        data = str(lmu)
    if data is not None:
        return parts_of(data, revision=revision)
    revision = revision or benchmark.revision
    if benchmark.url:
        return [Part(str(_downloaded(benchmark, lmu)), lmu)]
    if benchmark.hub_file:
        return [_hub_file(benchmark, revision)]
    if (why := offline()) and not data_cached(benchmark.hub):  # `datasets` would try for a minute
        raise ValueError(f"{benchmark.hub}: found no copy in the cache, and {why}{_elsewhere(benchmark)}")
    try:
        return [
            Part(
                f"{benchmark.hub}{f' ({config})' if config else ''}@{benchmark.split}",
                None,
                load_hub(benchmark.hub, benchmark.split, revision=revision, config=config or None),
                revision,
            )
            for config in benchmark.configs or ("",)
        ]
    except ValueError as error:
        raise ValueError(f"{line_of(error)}{_elsewhere(benchmark)}") from error


def _elsewhere(benchmark: Benchmark) -> str:
    """The options that need no network, at the end of an error."""
    return f"; --data {benchmark.name}=FILE takes a local copy, --rows FILE your own rows"


def _downloaded(benchmark: Benchmark, path: Path) -> Path:
    """VLMEvalKit's table in its own folder, under its own name; whole or not at all."""
    try:
        with whole(path) as file, urllib.request.urlopen(benchmark.url, timeout=60) as answer:
            shutil.copyfileobj(answer, file)
    except OSError as error:
        raise OSError(f"{benchmark.url}: {line_of(error)}{_elsewhere(benchmark)}") from error
    return path


def _hub_file(benchmark: Benchmark, revision: str | None) -> Part:
    try:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(benchmark.hub, benchmark.hub_file, repo_type="dataset", revision=revision)
    except Exception as error:
        raise ValueError(
            f"{benchmark.hub}: {benchmark.hub_file}: not readable from the Hub: {line_of(error)}"
            f"{_elsewhere(benchmark)}"
        ) from error
    return Part(f"{benchmark.hub}/{benchmark.hub_file}", Path(path), None, revision)


def _reader(benchmark: Benchmark) -> Callable[[Part], Iterator[Item | None]]:
    def read(part: Part) -> Iterator[Item | None]:
        columns = set(columns_of(part))
        layout = next((known for known in benchmark.layouts if columns.issuperset(known.columns)), None)
        if layout is None:
            expected = " or ".join(", ".join(known.columns) for known in benchmark.layouts)
            found = ", ".join(sorted(columns))
            raise ValueError(
                f"{part.name}: found columns {found}; expected those of {benchmark.name}: {expected}"
            )
        for record in records(part):
            yield _item(layout, record)

    return read


def _item(layout: Layout, record: Record) -> Item | None:
    """The item of a row. A broken row becomes an item, too, which counts as failed and says why."""
    try:
        item = layout.item(record)
    except ValueError as error:
        name = record.text("id", "idx", "index") or str(record.number)
        return Item(name, "", "", (), broken=f"{record.place}: {error}")
    if item is None or item.broken:
        return item
    try:
        return replace(item, answer=letter_of(item.answer, item.options, item.task))
    except ValueError as error:
        return replace(item, broken=f"{record.place}: answer: {error}")


def records(part: Part) -> Iterator[Record]:
    """Every row with all its columns. Raises ValueError where the file is broken."""
    rows = all_columns(part)
    if part.path is None or part.path.suffix != ".tsv":
        for number, cells in enumerate(rows):
            yield Record(f"{part.name} row {number}", number, cells, part.folder)
        return
    table = list(rows)
    pictures = {str(row.get("index")): row.get("image") for row in table}
    for number, row in enumerate(table):
        image = row.get("image")
        if isinstance(image, str) and 0 < len(image) <= _REFERENCE and image in pictures:
            row = {**row, "image": pictures[image]}
        yield Record(f"{part.name} row {number}", number, row, part.folder)


def _mismatches(benchmark: Benchmark, parts: Sequence[Part], found: int) -> list[str]:
    notes = []
    if benchmark.rows is not None and found != benchmark.rows:
        notes.append(
            f"found {found:,} rows, published {benchmark.rows:,}: not the whole benchmark, or another"
        )
    path = parts[0].path
    if path is not None and benchmark.md5 and path.name == f"{benchmark.tsv}.tsv":
        md5 = _md5(path)
        if md5 != benchmark.md5:
            notes.append(f"{path.name}: found MD5 {md5}, VLMEvalKit names {benchmark.md5}")
    return notes


def _md5(path: Path) -> str:
    state = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            state.update(chunk)
    return state.hexdigest()


def _distinct(items: list[Item]) -> list[Item]:
    """Ids made distinct: results are stored and compared by them. A new id is none that another row has."""
    taken = {item.id for item in items}
    numbers: dict[str, int] = {}
    named = []
    for item in items:
        name, number = item.id, numbers.get(item.id, 0) + 1
        if number > 1:
            number = next(free for free in count(number) if f"{item.id}#{free}" not in taken)
            name = f"{item.id}#{number}"
        numbers[item.id] = number
        taken.add(name)
        named.append(replace(item, id=name))
    return named


def table(*more: str) -> Layout:
    """The layout of VLMEvalKit's tables of multiple choice; `more` are further columns that must be there."""
    return Layout(("index", "question", "A", "B", "answer", "image", *more), of_table)


def of_table(record: Record) -> Item | None:
    """A row of VLMEvalKit's table. Rows that are rotations of another are left out: `circular` makes them."""
    index, options = record.text("index"), record.options()
    if index.isdigit() and int(index) >= _ROTATED:
        return None
    problem, images, options = posed(table_question(record.cells), options, record.images("image"))
    return Item(
        index,
        problem,
        record.text("answer"),
        images,
        options,
        task=record.text("category", "l2-category", "l2_category"),
        source=picture_of(images),
    )


def picture_of(images: Sequence[bytes]) -> str:
    """A source for questions that are asked about one and the same picture."""
    return hashlib.sha256(images[0]).hexdigest()[:16] if images else ""


def letter_of(answer: str, options: Mapping[str, str], task: str | None = None) -> str:
    """The answer of a row as the grader reads it: the letter of the option that `(B)` or `B. a cup` names.

    An order of pictures that the options label is an order; without options, the answer is as it came.
    Raises as `read_answer`.
    """
    return answer if answer in options or not options else read_answer(answer, options, task)


def answers(cells: object) -> list[str]:
    """Options that a column holds as a list, or as the text of one. Raises ValueError for anything else."""
    texts = read_written(cells) if isinstance(cells, str) else cells
    if not isinstance(texts, (list, tuple)):
        raise ValueError(f"options: found {str(cells)[:40]!r}, expected a list")
    if others := [text for text in texts if not is_text_or_number(text) and text is not None]:
        raise ValueError(f"options: found {str(others[0])[:40]}, expected texts")
    return ["" if text is None else str(text) for text in texts]
