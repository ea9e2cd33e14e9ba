"""Small tables in the layouts of the published benchmarks, as the Hub and as VLMEvalKit have them."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from support.rows import picture, reordering, write_parquet

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cell(seed: int) -> dict[str, Any]:
    return {"bytes": picture(seed), "path": None}


def parquet(path: Path, rows: Sequence[dict[str, Any]], **types: pa.DataType) -> Path:
    columns = {
        name: pa.array([row[name] for row in rows], types[name])
        if name in types
        else [row[name] for row in rows]
        for name in rows[0]
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def tsv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Pictures in base64; several of them as a list that is written out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows({**row, "image": in_table(row["image"])} for row in rows)
    return path


def in_table(image: object) -> str:
    if isinstance(image, list):
        return str([base64.b64encode(one).decode() for one in image])
    return base64.b64encode(image).decode() if isinstance(image, bytes) else str(image)


def tpru_hub(folder: Path) -> Path:
    rows = [reordering(seed, answer=letter) for seed, letter in enumerate("BADCE")]
    return write_parquet(folder / "test-00000-of-00001.parquet", rows)


def tpru_tsv(folder: Path) -> Path:
    rows = []
    for seed, letter in enumerate("BADCE"):
        row = reordering(seed)
        question, *options = row["problem"].split("\n")
        texts = {option[0]: option[3:] for option in options}
        rows.append({"index": seed, "question": question, **texts, "answer": letter, "image": row["images"]})
    return tsv(folder / "TPRU_Test.tsv", rows)


MUIR = [
    (
        "0",
        "1",
        "Ordering",
        "What is the order?\n<image>\n<image>",
        ["1-2", "2-1", "None of the choices provided"],
        "B",
    ),
    (
        "1",
        "0",
        "Ordering",
        "What is the order?\n<image>\n<image>",
        ["1-3", "3-1", "None of the choices provided"],
        "C",
    ),
    ("2", "-1", "Counting", "How many are in <image>?", ["one", "two"], "A"),
    ("3", "-1", "Image-Text Matching", "Which picture shows a cat?", ["<image>", "<image>"], "A"),
]


def muirbench_hub(folder: Path) -> Path:
    rows = [
        {
            "idx": idx,
            "task": task,
            "image_relation": "Temporal",
            "image_type": "Slides",
            "question": question,
            "options": options,
            "answer": answer,
            "image_list": [
                cell(10 * int(idx) + i) for i in range((question + "".join(options)).count("<image>"))
            ],
            "counterpart_idx": counterpart,
        }
        for idx, counterpart, task, question, options, answer in MUIR
    ]
    return parquet(folder / "data/test-00000-of-00001.parquet", rows, image_list=pa.list_(FILE))


def muirbench_tsv(folder: Path) -> Path:
    rows = [
        {
            "index": idx,
            "question": question,
            **{letter: options[i] if i < len(options) else "" for i, letter in enumerate("ABC")},
            "answer": answer,
            "image": [
                picture(10 * int(idx) + i) for i in range((question + "".join(options)).count("<image>"))
            ],
            "category": task,
        }
        for idx, _, task, question, options, answer in MUIR
    ]
    return tsv(folder / "MUIRBench.tsv", rows)


def lego_tsv(folder: Path) -> Path:
    order = "Put the steps <image 1>, <image 2>, <image 3> and <image 4> in order."
    common = {"A": "<image 1>", "B": "<image 2>", "C": "<image 3>", "D": "<image 4>"}
    pictures = [picture(i) for i in range(4)]
    rows = [
        {
            "index": 0,
            "question": order,
            **{letter: f"step {letter}" for letter in "ABCD"},
            "answer": "BDAC",
            "image": pictures,
            "question_type": "sort",
            "category": "ordering",
        },
        {
            "index": 1,
            "question": "Which of these is next?",
            **common,
            "answer": "C",
            "image": pictures,
            "question_type": "multiple-choice",
            "category": "next_step",
        },
        {
            "index": 2,
            "question": "Is the piece in <image 1> higher?",
            "A": "Yes",
            "B": "No",
            "C": "",
            "D": "",
            "answer": "B",
            "image": pictures[0],
            "question_type": "multiple-choice",
            "category": "height",
        },
    ]
    return tsv(folder / "LEGO.tsv", rows)


def blink_hub(folder: Path) -> Path:
    rows = [
        {
            "idx": f"val_Jigsaw_{i}",
            "question": "Which fits?",
            "sub_task": "Jigsaw",
            **{f"image_{n}": cell(10 * i + n) if n < 4 else None for n in range(1, 5)},
            "choices": ["the second image", "the third image"],
            "answer": "(B)",
            "prompt": "Which fits?\nSelect from the following choices.\n(A) the second image\n(B) the third",
        }
        for i in range(3)
    ]
    return parquet(folder / "Jigsaw/val-00000-of-00001.parquet", rows, image_4=FILE)


def plain_tsv(folder: Path, name: str, **more: Any) -> Path:
    """One picture, four options: the second row names the row that has its picture."""
    rows = [
        {
            "index": i,
            "question": f"What is in the picture ({i})?",
            "A": "a cat",
            "B": "a dog",
            "C": "a hat",
            "D": "",
            "answer": "ABC"[i],
            "image": picture(7) if i == 0 else "0" if i == 1 else picture(i),
            "category": "naming",
            **more,
        }
        for i in range(3)
    ]
    return tsv(folder / f"{name}.tsv", rows)


def blink_tsv(folder: Path) -> Path:
    return plain_tsv(folder, "BLINK")


def mmstar_hub(folder: Path) -> Path:
    rows = [
        {
            "index": i,
            "question": "<image 1>Which colour?\nOptions: A: red, B: blue, C: green, D: none of these",
            "image": picture(i),
            "answer": "BCD"[i],
            "category": "coarse perception",
            "l2_category": "image style & quality",
            "meta_info": {"source": "SEEDBench", "split": "val", "image_path": "x.jpg"},
        }
        for i in range(3)
    ]
    return parquet(folder / "mmstar.parquet", rows)


def mmstar_tsv(folder: Path) -> Path:
    return plain_tsv(folder, "MMStar", l2_category="image emotion")


def realworldqa_hub(folder: Path) -> Path:
    letter = "Please answer directly with only the letter of the correct option and nothing else."
    word = "Please answer directly with a single word or number."
    rows = [
        {"image": cell(0), "question": f"Which side?\nA. Left\nB. Right\n{letter}", "answer": "B"},
        {"image": cell(1), "question": f"How many cars are there?\n{word}", "answer": "3"},
        {"image": cell(2), "question": f"Is the light green?\n{word}", "answer": "Yes"},
    ]
    return parquet(folder / "data/test-00000-of-00001.parquet", rows)


def realworldqa_tsv(folder: Path) -> Path:
    return plain_tsv(folder, "RealWorldQA")


def mmmu_hub(folder: Path) -> Path:
    images = {f"image_{n}": None for n in range(3, 8)}
    rows = [
        {
            "id": "dev_Art_1",
            "question": "Compare <image 2> with <image 1>.",
            "options": "['older', 'newer', \"it's <image 1>\"]",
            "explanation": "",
            "image_1": cell(1),
            "image_2": cell(2),
            **images,
            "answer": "C",
            "question_type": "multiple-choice",
            "subfield": "Drawing",
        },
        {
            "id": "dev_Math_2",
            "question": "How long? <image 1>",
            "options": "[]",
            "explanation": "",
            "image_1": cell(3),
            "image_2": None,
            **images,
            "answer": "12",
            "question_type": "open",
            "subfield": "Geometry",
        },
    ]
    return parquet(folder / "data/dev-00000-of-00001.parquet", rows, **dict.fromkeys(images, FILE))


def mmmu_tsv(folder: Path) -> Path:
    def row(index: int, id_: str, split: str, **options: str) -> dict[str, Any]:
        question = "What is <image 1>?"
        texts = {"A": "", "B": "", **options}
        return {
            "index": index,
            "id": id_,
            "question": question,
            **texts,
            "answer": "A",
            "image": picture(index),
            "split": split,
        }

    rows = [
        row(0, "dev_Art_1", "dev", A="a vase", B="a cup"),
        row(1, "dev_Math_2", "dev"),
        row(2, "validation_Art_1", "validation", A="a vase", B="a cup"),
    ]
    return tsv(folder / "MMMU_DEV_VAL.tsv", rows)


def mmtbench_tsv(folder: Path) -> Path:
    return plain_tsv(folder, "MMT-Bench_VAL", **{"l2-category": "recognition", "split": "val"})


def mmcr_tsv(folder: Path) -> Path:
    """Each question twice, the second time with its options moved on."""
    rows = [
        {
            "index": i + 1_000_000 * turn,
            "question": f"What does figure {i} show?",
            "A": ("loss", "accuracy")[turn],
            "B": ("accuracy", "loss")[turn],
            "answer": "AB"[turn],
            "image": picture(i),
            "category": "figure",
        }
        for turn in range(2)
        for i in range(3)
    ]
    return tsv(folder / "MMCR.tsv", rows)


MME = ["(A) 12", "(B) 21", "(C) 3", "(D) 4", "(E) The image does not feature the number."]


def mme_hub(folder: Path) -> Path:
    rows = [
        {
            "bytes": base64.b64encode(picture(i)).decode(),
            "path": f"{i}.png",
            "question": "Which number?",
            "multi-choice options": MME,
            "answer": "ABE"[i],
            "category": "Perception",
            "l2-category": "OCR",
        }
        for i in range(3)
    ]
    return parquet(folder / "data/train-00000-of-00001.parquet", rows)


def mme_tsv(folder: Path) -> Path:
    rows = [
        {
            "index": i,
            "image": picture(i),
            "question": "Which number?",
            "multi-choice options": str(MME),
            "answer": "ABE"[i],
            "category": "Perception",
            "l2-category": "OCR",
        }
        for i in range(3)
    ]
    return tsv(folder / "MME-RealWorld-Lite.tsv", rows)


# Benchmark -> its layouts.
LAYOUTS: dict[str, tuple[Callable[[Path], Path], ...]] = {
    "tpru-test": (tpru_hub, tpru_tsv),
    "muirbench": (muirbench_hub, muirbench_tsv),
    "lego-puzzles": (lego_tsv,),
    "blink": (blink_hub, blink_tsv),
    "mmstar": (mmstar_hub, mmstar_tsv),
    "realworldqa": (realworldqa_hub, realworldqa_tsv),
    "mmmu-dev": (mmmu_hub, mmmu_tsv),
    "mmtbench": (mmtbench_tsv,),
    "mmcr": (mmcr_tsv,),
    "mme-realworld-lite": (mme_hub, mme_tsv),
}
