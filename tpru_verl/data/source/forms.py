"""The forms in which rows come: which columns hold problem, answer and images, and in which pieces they lie.

Nothing here judges a row (`tpru_verl.data.checks` does). ValueError names a file that cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from tpru_verl.data.source.cells import names_of
from tpru_verl.data.source.options import option_columns
from tpru_verl.data.source.parts import KINDS, TABLES, Part, parts_of, plain_rows, refuse_empty
from tpru_verl.terminal import line_of

HUB_SLICE = 512  # rows of a Hub data set that are one unit of work
OPTIONAL = ("task", "scene", "source_id", "id", "data_source", "extra_info", "agent_name")

# Column names met in published sets, in the order in which they are preferred.
PROBLEMS, ANSWERS = ("problem", "question", "query"), ("answer", "ground_truth", "solution", "label")
CHATS = ("messages", "conversations", "conversation")  # as OpenAI, ShareGPT and LLaVA call them
IMAGES = ("images", "image", "image_paths", "image_path", "file_names", "file_name")

# What an answer says: the letter of an option, the pictures in their right order, or the place in it of each
# picture as shown.
ANSWER_KINDS = ("letters", "orders", "ranks")


@dataclass(frozen=True)
class Keys:
    """What the user said of a source; what is None is detected."""

    problem: str | None = None  # name of a column
    answer: str | None = None  # "": none is read, whatever the columns are called
    images: str | None = None  # of one column, or of several: "first,second,third"
    image_root: Path | None = None  # where pictures lie, or below it in a folder that has the row's id
    answers: str | None = None  # one of ANSWER_KINDS
    answered: bool = True  # False: rows without an answer do, too

    @property
    def named(self) -> bool:
        """Whether a table was described that no trainer reads as it is."""
        return self.image_root is not None or self.answers is not None


@dataclass(frozen=True)
class TrainerKeys:
    """Names of the columns that a run of a trainer reads; none is detected.

    A part has the first three, or veRL's form: `prompt`, `images` and `reward_model`. `prompt` is None for
    EasyR1, which does not read that form.
    """

    problem: str = "problem"
    answer: str = "answer"
    images: str = "images"
    prompt: str | None = "prompt"


@dataclass(frozen=True)
class Form:
    """How the columns of a source are to be read.

    `kind` is `published` (problem, answer, images), `verl` (prompt, images, reward_model), `vlmevalkit`
    (question, A, B, ..., answer, image in base64, no tags), `chat` (messages, see `messages.py`) or `named`
    (columns of a table, see `named.py`).
    """

    kind: str
    problem: str
    answer: str  # "" where no column has answers
    images: str
    columns: tuple[str, ...] = ()  # with the images of a `named` form, in the order to show them in
    image_root: Path | None = None
    answers: str | None = None  # one of ANSWER_KINDS; None where nobody said
    answered: bool = True  # False: a row without an answer is sound
    late: tuple[
        str, ...
    ] = ()  # names, in small letters, of columns that `chat` reads if the first row has them
    options: tuple[str, ...] = ()  # columns with options, by their names
    fixed: bool = False  # True: the trainer (EasyR1) reads text and answer as they came

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that hold problem, answer and images."""
        return (self.problem, self.answer, self.images, *self.columns)

    def name_of(self, role: str) -> str:
        """The field of a row that holds its `problem`, `answer` or `images`."""
        name = {"problem": self.problem, "answer": self.answer, "images": self.images}[role]
        if role == "answer" and self.kind == "verl":
            return f"{name}.ground_truth"
        return f"{name}.assistant" if role == "answer" and self.answer == self.problem else name

    def __str__(self) -> str:
        answer = f"{self.answer or 'none'}{f' as {self.answers}' if self.answers else ''}"
        return f"problem={self.problem}, answer={answer}, images={self.images} ({self.kind} form)"


@dataclass(frozen=True)
class Unit:
    """A piece of a part that one worker reads: a row group, a slice of a Hub data set, or a whole file."""

    part: Part
    first: int  # number of its first row in the part
    rows: int | None  # None where only reading tells
    row_group: int = 0


def columns_of(part: Part) -> list[str]:
    """The part's columns, from its schema or its first row. Raises ValueError for what cannot be read."""
    if part.hub is not None:
        return list(part.hub.column_names)
    assert part.path is not None
    refuse_empty(part)
    try:
        if part.path.suffix == ".parquet":
            return list(pq.read_schema(part.path).names)
    except Exception as error:
        raise ValueError(f"{part.name}: not readable as parquet: {line_of(error)}") from error
    return list(next(plain_rows(part), {}))


def answers_in(part: Part) -> list[str]:
    """The part's columns that hold answers by their names. Raises as `columns_of`."""
    return [name for name in columns_of(part) if name.casefold() in (*ANSWERS, "reward_model")]


def form_of(part: Part, keys: Keys | TrainerKeys) -> Form:
    """Which columns hold what. Raises ValueError, with the columns found, where that can't be decided."""
    if isinstance(keys, TrainerKeys):
        check_kind(part)
    found = columns_of(part)
    if not found:
        raise ValueError(f"{part.name}: found 0 rows, expected at least 1")
    if isinstance(keys, TrainerKeys):
        return trainer_form(part.name, found, keys)
    form = _described_form(part, found, keys)
    return replace(form, options=option_columns(tuple(found), form.used))


def _described_form(part: Part, found: list[str], keys: Keys) -> Form:
    listed = names_of(found)
    columns = _image_columns(found, keys)
    named = (keys.problem, keys.answer, *columns)
    if missing := [name for name in named if name and name not in found]:
        raise ValueError(f"{part.name}: found columns {listed}; expected {missing[0]}")
    images = ",".join(columns) or None
    # `tpru data prepare` writes both forms: the question as it was counts, not the prompt made of it.
    published = {PROBLEMS[0], ANSWERS[0]} <= set(found)
    if images and not (keys.problem or keys.answer or published) and {"prompt", "reward_model"} <= set(found):
        answer = "reward_model" if keys.answer is None else ""
        return Form("verl", "prompt", answer, images, answered=keys.answered)
    if chat := _first_of(CHATS, [keys.problem] if keys.problem else [] if published else found):
        answer = (_first_of(ANSWERS, found) or chat) if keys.answer is None else keys.answer
        late = (*(() if columns else IMAGES), *(ANSWERS if keys.answer is None and answer == chat else ()))
        described = (columns, keys.image_root, keys.answers, keys.answered, late)
        return Form("chat", chat, answer, images or chat, *described)
    problem = keys.problem or _first_of(PROBLEMS, found)
    answer = _first_of(ANSWERS, found) if keys.answer is None else keys.answer
    answer = "" if answer is None and not keys.answered else answer
    if problem is None or answer is None or images is None:
        wanted = zip(("problem", "answer", "image"), (problem, answer, images), strict=True)
        unknown = " and ".join(f"--{key}-key" for key, name in wanted if name is None)
        hint = "" if images or not (several := _numbered(found)) else f", such as --image-key {several}"
        raise ValueError(f"{part.name}: found columns {listed}; say with {unknown} which to read{hint}")
    table = part.path is not None and part.path.suffix in TABLES
    if problem == "question" and {"A", "B"} <= set(found) and not keys.named and len(columns) == 1:
        return Form("vlmevalkit", problem, answer, images, answered=keys.answered)
    if not (table or keys.named or len(columns) > 1):
        return Form("published", problem, answer, images, answered=keys.answered)
    return Form("named", problem, answer, images, columns, keys.image_root, keys.answers, keys.answered)


def _numbered(found: Sequence[str]) -> str:
    """Columns whose names differ by a number at their end alone: `frame1,frame2`; "" for fewer than two."""
    by_stem: dict[str, list[str]] = {}
    for name in found:
        if (stem := re.sub(r"\d+$", "", name)) != name:
            by_stem.setdefault(stem, []).append(name)
    return ",".join(next((names for names in by_stem.values() if 1 < len(names) <= 32), ()))


def _image_columns(found: Sequence[str], keys: Keys) -> tuple[str, ...]:
    if keys.images and keys.images not in found:
        return tuple(name.strip() for name in keys.images.split(","))
    name = keys.images or _first_of(IMAGES, found)
    if name is None and keys.image_root is not None:  # a folder for each row, named by its id
        name = _first_of(("id",), found)
    return (name,) if name else ()


def _first_of(names: Sequence[str], found: Sequence[str]) -> str | None:
    """The first of `names` that is a column; capitals matter only where two columns differ by them."""
    by_name = {name.casefold(): name for name in reversed(found)}
    return next((by_name.get(name) if name not in found else name for name in names if name in by_name), None)


def check_kind(part: Part) -> None:
    """Raises ValueError for a file of a kind that trainers do not read."""
    if part.path is not None and part.path.suffix not in KINDS:
        found = part.path.suffix or "no suffix"
        raise ValueError(
            f"{part.name}: found {found!r}, expected {', '.join(KINDS)}; or what `tpru data prepare` writes"
        )


def trainer_form(name: str, found: Sequence[str], keys: TrainerKeys) -> Form:
    """Which of the columns `found` in `name` a trainer reads. Raises ValueError where they do not do."""
    forms = [Form("published", keys.problem, keys.answer, keys.images, fixed=keys.prompt is None)]
    if keys.prompt is not None:
        forms.append(Form("verl", keys.prompt, "reward_model", keys.images))
    for form in forms:
        if {form.problem, form.answer, form.images} <= {*found}:
            return replace(form, options=option_columns(tuple(found), form.used))
    expected = ", or veRL's ".join(f"{form.problem}, {form.answer}, {form.images}" for form in forms)
    problem = "problem" if keys.prompt is not None else "prompt"  # as EasyR1 calls it
    raise ValueError(
        f"{name}: found columns {names_of(found)}; expected {expected}; "
        f"data.{{{problem},answer,image}}_key name others"
    )


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


@dataclass(frozen=True)
class Source:
    """A source that was opened: what it is called, its parts, how they are read, and in which pieces."""

    name: str
    revision: str | None  # the commit, for a data set of the Hub
    parts: list[Part]
    forms: list[Form]
    units: list[Unit]

    @classmethod
    def open(
        cls, name: str, *, revision: str | None = None, keys: Keys | TrainerKeys | None = None
    ) -> Source:
        """Look at schemas, and at no row of parquet. Raises ValueError or FileNotFoundError, in one line."""
        parts = parts_of(name, revision=revision)
        forms = [form_of(part, keys or Keys()) for part in parts]
        units = [unit for part in parts for unit in units_of(part)]
        if not sum(1 if unit.rows is None else unit.rows for unit in units):
            raise ValueError(f"{name}: found 0 rows, expected at least 1")
        return cls(name, parts[0].commit or revision, parts, forms, units)

    @property
    def places(self) -> list[str]:
        """The source, then its files, which may be links to other places."""
        return [self.name, *(part.name for part in self.parts if part.path)]

    @property
    def rows(self) -> int | None:
        """How many rows there are, where that is known before reading them."""
        counts = [unit.rows for unit in self.units]
        return None if None in counts else sum(count for count in counts if count is not None)

    def form(self, unit: Unit) -> Form:
        return self.forms[self.parts.index(unit.part)]
