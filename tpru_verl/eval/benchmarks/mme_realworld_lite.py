"""MME-RealWorld-Lite: large pictures of streets, charts, documents and from above; 1,919 rows.

Zhang et al. 2024, arXiv 2408.13257. Options come as "(A) ..."; E says that it is not to be seen.
"""

from __future__ import annotations

import re

from tpru_verl.eval.benchmarks.base import Benchmark, Layout, Record, answers, picture_of
from tpru_verl.eval.item import Item, listed, posed

INSTRUCTION = (
    "Select the best answer to the above multiple-choice question based on the image. "
    "Respond with only the letter (A, B, C, D, or E) of the correct option."
)
_MARK = re.compile(r"\s*\(?[A-Z][.)]\s*")


def of_either(record: Record) -> Item:
    texts = answers(record.cells["multi-choice options"])
    options = listed([_MARK.sub("", text, count=1) for text in texts])
    problem, images, options = posed(record.text("question"), options, record.images("bytes", "image"))
    return Item(
        record.text("index") or str(record.number),
        problem,
        record.text("answer"),
        images,
        options,
        task=record.text("l2-category", "category"),
        scene=record.text("category"),
        source=picture_of(images),
    )


BENCHMARK = Benchmark(
    name="mme-realworld-lite",
    title="MME-RealWorld-Lite",
    hub="yifanzhang114/MME-RealWorld-lite-lmms-eval",
    revision="a9aa36effbfd7bd385c7a0a22ad67cc462d47a03",
    split="train",
    rows=1919,
    layouts=(
        Layout(("bytes", "question", "multi-choice options", "answer"), of_either),
        Layout(("index", "image", "question", "multi-choice options", "answer"), of_either),
    ),
    instruction=INSTRUCTION,
    tsv="MME-RealWorld-Lite",
    md5="4c17057d7d3b6c4a0d4397c3dae0881c",
)
