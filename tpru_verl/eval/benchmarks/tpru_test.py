"""TPRU-Test: reordering, next frame and previous frame over robots, LEGO, screens and rooms; 461 rows.

Rows are read and asked as in training, so that the only thing that differs is the model.
"""

from __future__ import annotations

from collections.abc import Iterator

from tpru_verl.data.source.forms import Keys, form_of, units_of
from tpru_verl.data.source.parts import Part
from tpru_verl.data.source.rows import read_rows
from tpru_verl.eval.benchmarks.base import Benchmark
from tpru_verl.eval.item import Item
from tpru_verl.sample import parse_options, problems_of
from tpru_verl.terminal import line_of


def read(part: Part) -> Iterator[Item]:
    """Rows of the published form, of veRL's, or of VLMEvalKit's."""
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


BENCHMARK = Benchmark(
    name="tpru-test",
    title="TPRU-Test",
    hub="Stephengzk/TPRU-test",
    rows=461,
    layouts=(),
    read=read,
    template="paper",
    tsv="TPRU_Test",
)
