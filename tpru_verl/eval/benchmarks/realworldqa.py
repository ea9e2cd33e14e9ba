"""RealWorldQA: photographs, many from vehicles; 765 rows.

Published by xAI in April 2024. Some of the Hub's rows list options, the others ask for one word or number.
"""

from __future__ import annotations

import re

from tpru_verl.eval.benchmarks.base import LETTER, Benchmark, Layout, Record, picture_of, table
from tpru_verl.eval.item import Item, placed
from tpru_verl.sample import parse_options

_ASKED = re.compile(r"\s*Please answer directly with [^\n]*$")
WORD = "Please answer directly with a single word or number."
NUMBERS = tuple(str(number) for number in range(101))


def of_hub(record: Record) -> Item:
    question = _ASKED.sub("", record.text("question"))
    problem, images = placed(question, record.images("image"))
    answer, options = record.text("answer"), parse_options(problem)
    listed = answer in options
    # What may be answered where nothing is listed: other words are wrong, and not to be read as a choice.
    accepted = () if listed else NUMBERS if answer in NUMBERS else tuple({"Yes": 0, "No": 0, answer: 0})
    return Item(
        str(record.number),
        problem,
        answer,
        images,
        options if listed else {},
        accepted,
        task="multiple choice" if listed else "word or number",
        source=picture_of(images),
    )


def instruction(item: Item) -> str:
    return LETTER if item.options else WORD


BENCHMARK = Benchmark(
    name="realworldqa",
    title="RealWorldQA",
    hub="xai-org/RealworldQA",
    revision="8e9ca3a17156c729f8af87bb92a83f8b22637f4e",
    rows=765,
    layouts=(table(), Layout(("image", "question", "answer"), of_hub)),
    instruction=instruction,
    tsv="RealWorldQA",
    md5="4de008f55dc4fd008ca9e15321dc44b7",
)
