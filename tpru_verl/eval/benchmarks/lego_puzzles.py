"""LEGO-Puzzles: 11 tasks of building step by step, 100 rows each; 1,100 rows.

Tang et al. 2025, arXiv 2503.19990. Images stand where `<image N>` is written; an ordering is answered with
the letters of the images in their order, and lists its images as A to D, which are no options to choose from.
"""

from __future__ import annotations

from dataclasses import replace

from tpru_verl.eval.benchmarks.base import SELECT, Benchmark, Layout, Record, of_table
from tpru_verl.eval.item import Item

SORT = "Please respond with only the sequence of letters (e.g., 'BDAC') that correctly orders the steps."


def of_tsv(record: Record) -> Item | None:
    item = of_table(record)
    if item is None:
        return None
    ordering = record.text("question_type") == "sort"
    if ordering and sorted(item.answer) != sorted(item.options):
        raise ValueError(f"answer: found {item.answer!r}, expected an order of {', '.join(item.options)}")
    task = record.text("category") or record.text("question_type")
    return replace(item, task=task, options={} if ordering else item.options)


def instruction(item: Item) -> str:
    return SELECT if item.options else SORT


BENCHMARK = Benchmark(
    name="lego-puzzles",
    title="LEGO-Puzzles",
    hub="KexianTang/LEGOPuzzles",
    url="https://opencompass.openxlab.space/utils/VLMEval/LEGO.tsv",  # the Hub has a JSON file and an archive
    rows=1100,
    layouts=(Layout(("index", "question", "question_type", "A", "B", "answer", "image"), of_tsv),),
    instruction=instruction,
    tsv="LEGO",
    md5="cfa845764442ebd54afa369c26011b8e",
)
