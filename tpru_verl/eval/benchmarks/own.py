"""Rows of the user, of any source that `tpru data` reads, as a benchmark under its own name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tpru_verl.data.source.forms import Keys, form_of, units_of
from tpru_verl.data.source.parts import Part
from tpru_verl.data.source.rows import read_rows
from tpru_verl.eval.benchmarks import NAMES
from tpru_verl.eval.benchmarks.base import Benchmark
from tpru_verl.eval.item import Item
from tpru_verl.sample import parse_options, problems_of
from tpru_verl.terminal import line_of


def own(sources: Sequence[str]) -> list[tuple[Benchmark, str]]:
    """A benchmark for each source, with the source. Its name is the last part of the source's path.

    No such name is that of a published benchmark, and no two are equal.
    """
    found: list[tuple[Benchmark, str]] = []
    names: set[str] = {*NAMES}
    for source in dict.fromkeys(sources):
        title = Path(source.rstrip("/")).name or source
        base = name = re.sub(r"[^\w.@-]+", "-", title).strip("-.") or "rows"
        number = 1
        while name.lower().replace("_", "-") in names:
            number += 1
            name = f"{base}-{number}"
        names.add(name.lower().replace("_", "-"))
        found.append(
            (Benchmark(name, title, hub="", rows=None, layouts=(), read=read, template="tpru"), source)
        )
    return found


def read(part: Part) -> Iterator[Item]:
    """Rows of the published form, of veRL's, or of VLMEvalKit's, as a trainer reads them."""
    form = form_of(part, Keys())
    for unit in units_of(part):
        for row in read_rows(unit, form):
            try:
                images = row.images() if isinstance(row.cells, list) else []
                task = row.task
                problems = problems_of(row.problem, row.answer, len(images))
            except ValueError as error:
                images, task, problems = [], None, [line_of(error)]
            problem, answer = str(row.problem), str(row.answer).strip()
            yield Item(
                row.row_id,
                problem,
                answer,
                tuple(images),
                parse_options(problem),
                task=task.value if task else "",
                scene=row.field("scene"),
                source=row.source_id,
                broken=f"{part.name} row {row.number}: {problems[0]}" if problems else None,
            )
