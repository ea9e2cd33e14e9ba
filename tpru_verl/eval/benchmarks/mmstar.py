"""MMStar: questions that cannot be answered without the picture; 1,500 rows.

Chen et al. 2024, arXiv 2403.20330. The Hub's rows hold the options inside the question, as "A: ..., B: ...".
"""

from __future__ import annotations

import re

from tpru_verl.data.source.rows import is_missing_option
from tpru_verl.eval.benchmarks.base import LETTER, Benchmark, Layout, Record, picture_of, table
from tpru_verl.eval.item import Item, placed
from tpru_verl.sample import parse_options


def of_hub(record: Record) -> Item:
    question = record.text("question").replace("<image 1>", "")
    listed = parse_options(question)
    options = {letter: text for letter, text in listed.items() if not is_missing_option(text)}
    for letter in listed.keys() - options.keys():  # "nan", which VLMEvalKit's table does not show
        question = _without(letter, question)
    if not options:
        raise ValueError("question: found no options in it, expected A: ..., B: ...")
    problem, images = placed(question, record.images("image"))
    return Item(
        record.text("index"),
        problem,
        record.text("answer"),
        images,
        options,
        task=record.text("category"),
        scene=record.text("l2_category"),
        source=picture_of(images),
    )


def _without(letter: str, question: str) -> str:
    """The question without an option that is none: its line, or its place among the others of a line."""
    option = rf"\b{letter}:[ \t]*(?:nan|NaN)?[ \t]*"
    whole_line = rf"^[ \t]*{option},?[ \t]*(?:\r?\n|\Z)"
    pattern = rf"{whole_line}|{option},[ \t]*|(?:,[ \t]*)?{option}(?=\r?$)"
    return re.sub(pattern, "", question, flags=re.MULTILINE).rstrip(", \r\n")


BENCHMARK = Benchmark(
    name="mmstar",
    title="MMStar",
    hub="Lin-Chen/MMStar",
    revision="bc98d668301da7b14f648724866e57302778ab27",
    split="val",
    rows=1500,
    # A table has the options in columns, too, so it is looked for first.
    layouts=(table("l2_category"), Layout(("index", "question", "answer", "image", "meta_info"), of_hub)),
    instruction=LETTER,
    tsv="MMStar",
    md5="e1ecd2140806c1b1bbf54b43372efb9e",
)
