"""MMMU, the multiple-choice part of the dev split: exam questions of 30 subjects; 141 of 150 rows.

Yue et al. 2023, arXiv 2311.16502. Open questions are left out and counted; VLMEvalKit turns them into a
choice between the answer and "Other Answers".
"""

from __future__ import annotations

import re
from dataclasses import replace

from tpru_verl.eval.benchmarks.base import LETTER, Benchmark, Layout, Record, answers, of_table, picture_of
from tpru_verl.eval.item import Item, listed, posed

IMAGES = tuple(f"image_{number}" for number in range(1, 8))


def of_hub(record: Record) -> Item | None:
    if record.text("question_type") != "multiple-choice":
        return None
    options = listed(answers(record.cells["options"]))
    problem, images, options = posed(record.text("question"), options, record.images(*IMAGES))
    return Item(
        record.text("id"),
        problem,
        record.text("answer"),
        images,
        options,
        task=_subject(record.text("id")) or record.text("subfield"),
        scene=record.text("subfield"),
        source=picture_of(images),
    )


def of_tsv(record: Record) -> Item | None:
    """DEV and VAL are one table; an open question has no options in it."""
    if record.text("split") not in ("dev", "") or not record.options():
        return None
    item = of_table(record)
    return item and replace(
        item, id=record.text("id") or item.id, task=item.task or _subject(record.text("id"))
    )


def _subject(name: str) -> str:
    match = re.fullmatch(r"[a-z]+_(.+)_\d+", name)
    return match[1] if match else ""


BENCHMARK = Benchmark(
    name="mmmu-dev",
    title="MMMU-Dev",
    hub="lmms-lab/MMMU",
    revision="5f93af86377c18552077e1ffdb193d9f8d2b1343",
    split="dev",
    rows=141,
    layouts=(
        Layout(("id", "question", "options", "answer", "question_type", *IMAGES), of_hub),
        Layout(("index", "question", "A", "B", "answer", "image", "split"), of_tsv),
    ),
    instruction=LETTER,
    note="open questions, and rows of other splits",
    tsv="MMMU_DEV_VAL",
    md5="585e8ad75e73f75dcad265dfd0417d64",
)
