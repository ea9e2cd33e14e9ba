"""Where rows come from: files, folders and Hub ids, read a few rows at a time, in every form that is about.

Nothing here judges a row (`validate` does); what cannot be read raises ValueError with file and reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from tpru_verl.data.source.parts import Part, parts_of, plain_rows
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    pass

HUB_SLICE = 512  # rows of a Hub data set that are one unit of work
OPTIONAL = ("task", "scene", "source_id", "id", "data_source", "extra_info", "agent_name")

# Column names met in published sets, in the order in which they are preferred.
PROBLEMS, ANSWERS = ("problem", "question", "query"), ("answer", "ground_truth", "solution", "label")
IMAGES = ("images", "image", "image_paths", "image_path", "file_names", "file_name")


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
    try:
        if part.path.suffix == ".parquet":
            return list(pq.read_schema(part.path).names)
    except Exception as error:
        raise ValueError(f"{part.name}: not readable as parquet: {line_of(error)}") from error
    return list(next(plain_rows(part), {}))


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


@dataclass(frozen=True)
class Source:
    """A source that was opened: what it is called, its parts, how they are read, and in which pieces."""

    name: str
    revision: str | None  # the commit, for a data set of the Hub
    parts: list[Part]
    forms: list[Form]
    units: list[Unit]

    @classmethod
    def open(cls, name: str, *, revision: str | None = None, keys: Keys | None = None) -> Source:
        """Look at schemas, and at no row of parquet. Raises ValueError or FileNotFoundError, in one line."""
        parts = parts_of(name, revision=revision)
        forms = [form_of(part, keys or Keys()) for part in parts]
        units = [unit for part in parts for unit in units_of(part)]
        if not sum(1 if unit.rows is None else unit.rows for unit in units):
            raise ValueError(f"{name}: found 0 rows, expected at least 1")
        return cls(name, parts[0].commit or revision, parts, forms, units)

    @property
    def rows(self) -> int | None:
        """How many rows there are, where that is known before reading them."""
        counts = [unit.rows for unit in self.units]
        return None if None in counts else sum(count for count in counts if count is not None)

    def form(self, unit: Unit) -> Form:
        return self.forms[self.parts.index(unit.part)]
