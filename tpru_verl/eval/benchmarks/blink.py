"""BLINK: 14 tasks of seeing without words, some over several images; 1,901 rows of the validation split.

Fu et al. 2024, arXiv 2404.12390. The prompt of the authors lists the options as (A), (B), ...
"""

from __future__ import annotations

from tpru_verl.eval.benchmarks.base import (
    SELECT,
    Benchmark,
    Layout,
    Record,
    answers,
    picture_of,
    table,
)
from tpru_verl.eval.item import Item, listed, posed

TASKS = (
    "Art_Style", "Counting", "Forensic_Detection", "Functional_Correspondence", "IQ_Test", "Jigsaw",
    "Multi-view_Reasoning", "Object_Localization", "Relative_Depth", "Relative_Reflectance",
    "Semantic_Correspondence", "Spatial_Relation", "Visual_Correspondence", "Visual_Similarity",
)  # fmt: skip
IMAGES = ("image_1", "image_2", "image_3", "image_4")


def of_hub(record: Record) -> Item:
    options = listed(answers(record.cells["choices"]))
    question, _, _ = record.text("prompt", "question").partition("\nSelect from the following choices")
    problem, images, options = posed(question, options, record.images(*IMAGES))
    return Item(
        record.text("idx"),
        problem,
        record.text("answer"),
        images,
        options,
        task=record.text("sub_task"),
        source=picture_of(images),
    )


BENCHMARK = Benchmark(
    name="blink",
    title="BLINK",
    hub="BLINK-Benchmark/BLINK",
    revision="cbb5717ea541ba92bbf9a63b99972493a1a133b8",
    split="val",
    configs=TASKS,
    rows=1901,
    layouts=(Layout(("idx", "question", "sub_task", "choices", "answer", *IMAGES), of_hub), table()),
    instruction=SELECT,
    tsv="BLINK",
    md5="d5e8af148b10ac69f535ff7b23f3f989",
)
