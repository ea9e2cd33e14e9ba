"""MuirBench: 12 tasks over several images, half of the questions made unanswerable on purpose; 2,600 rows.

Wang et al. 2024, arXiv 2406.09411. A question and its unanswerable counterpart are one source.
"""

from __future__ import annotations

from tpru_verl.eval.benchmarks.base import LETTER, Benchmark, Layout, Record, answers, of_table
from tpru_verl.eval.item import Item, listed, posed


def of_hub(record: Record) -> Item:
    options = listed(answers(record.cells["options"]))
    problem, images, options = posed(record.text("question"), options, record.images("image_list"))
    name, counterpart = record.text("idx"), record.text("counterpart_idx")
    return Item(
        name,
        problem,
        record.text("answer"),
        images,
        options,
        task=record.text("task"),
        scene=record.text("image_type"),
        source=min(name, counterpart) if counterpart and counterpart != "-1" else name,
    )


def of_tsv(record: Record) -> Item | None:
    return of_table(record)


BENCHMARK = Benchmark(
    name="muirbench",
    title="MuirBench",
    hub="MUIRBENCH/MUIRBENCH",
    revision="9191cbf6edb43b4a9da97514e2d5436b490d36c8",
    rows=2600,
    layouts=(
        Layout(("idx", "task", "question", "options", "answer", "image_list"), of_hub),
        Layout(("index", "question", "A", "B", "answer", "image"), of_tsv),
    ),
    instruction=LETTER,
    tsv="MUIRBench",
    md5="2e5e6fd7699761b08a7cb3ab8c0c2ec8",
)
