"""Rows of the user, of any source that `tpru data` reads, as a benchmark under its own name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tpru_verl.data.checks import problems_of_row
from tpru_verl.data.source.cells import is_missing
from tpru_verl.data.source.forms import Keys, form_of, units_of
from tpru_verl.data.source.parts import Part
from tpru_verl.data.source.rows import Row, read_rows
from tpru_verl.eval.benchmarks import NAMES
from tpru_verl.eval.benchmarks.base import Benchmark, letter_of
from tpru_verl.eval.decide import GUIDED, SCORE
from tpru_verl.eval.item import Item
from tpru_verl.sample import parse_options, problems_of
from tpru_verl.terminal import line_of

RESERVED = ("responses", "server", "summary", "page")  # files of an evaluation's folder
_DECIDED = (f".{GUIDED}", f".{SCORE}")  # how the results of `--decide` end


def own(sources: Sequence[str], keys: Keys | None = None) -> list[tuple[Benchmark, str]]:
    """A benchmark for each source, with the source. Its name is the last part of the source's path.

    No such name is that of a published benchmark or of another file of the results, and no two are equal.
    """
    found: list[tuple[Benchmark, str]] = []
    names: set[str] = {*NAMES, *RESERVED}
    for source in dict.fromkeys(sources):
        title = Path(source.rstrip("/")).name or source
        base = name = re.sub(r"[^\w.@-]+", "-", title).strip("-.") or "rows"
        number = 1
        while name.lower().replace("_", "-") in names or name.lower().endswith(_DECIDED):
            number += 1
            name = f"{base}-{number}"
        names.add(name.lower().replace("_", "-"))
        judged = partial(read, keys=keys or Keys())
        benchmark = Benchmark(name, title, hub="", rows=None, layouts=(), read=judged, template="tpru")
        found.append((benchmark, source))
    return found


def read(part: Part, keys: Keys | None = None) -> Iterator[Item]:
    """Rows of any form, as a trainer reads them. Rows of the user, with `keys`, are judged as in training."""
    form = form_of(part, keys or Keys())
    for unit in units_of(part):
        for row in read_rows(unit, form):
            problems = [*problems_of_row(row)] if keys else _problems(row)
            problem, listed = str(row.problem), row.cells if isinstance(row.cells, list) else []
            answer = "" if is_missing(row.answer) else str(row.answer).strip()
            options = parse_options(problem)
            yield Item(
                row.row_id,
                problem,
                letter_of(answer, options) if answer and not problems else answer,
                () if problems else tuple(row.images() if listed else ()),
                options,
                task=_task_of(row),
                scene=row.field("scene"),
                source=row.source_id,
                broken=f"{part.name} row {row.number}: {problems[0]}" if problems else None,
            )


def _task_of(row: Row) -> str:
    """The task of a row, a broken one, too; "" where the row names none that is known."""
    try:
        return row.task.value if row.task else ""
    except ValueError:
        return ""


def _problems(row: Row) -> list[str]:
    """What keeps a published row from being asked; its authors may have their own idea of a good row."""
    try:
        _ = row.task
        return problems_of(row.problem, row.answer, len(row.images() if isinstance(row.cells, list) else []))
    except ValueError as error:
        return [line_of(error)]
