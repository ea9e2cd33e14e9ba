"""Options in columns of their own become lines of the question; no letter of an unseen option is right."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import Tpru
from support.results import read as read_result
from support.rows import picture, write_jsonl

from tpru_verl.data.checks import judged_rows, notes_of_row
from tpru_verl.data.source.forms import Keys, Source, TrainerKeys
from tpru_verl.data.source.rows import Row

TEXTS = ["it's red", "blue", "7"]
LISTED = "<image> Which colour comes next?\nA. it's red\nB. blue\nC. 7"
BY_LETTER = dict(zip("ABC", TEXTS, strict=True))
COLUMNS: list[dict[str, object]] = [
    {"options": TEXTS},
    {"Choices": TEXTS},
    {"options": ["A. it's red", "(B) blue", "C: 7"]},
    {"options": BY_LETTER},
    {"options": {**BY_LETTER, "D": None}},
    {"choices": {"text": TEXTS, "label": ["A", "B", "C"]}},
    {"options": str(TEXTS)},
    {"options": json.dumps(BY_LETTER)},
    {"options": "A. it's red\nB. blue\nC. 7"},
    {"a": TEXTS[0], "b": TEXTS[1], "c": TEXTS[2], "d": ""},
    {f"option_{letter}": text for letter, text in zip("abc", TEXTS, strict=True)},
    {f"Option {letter}": text for letter, text in zip("ABC", TEXTS, strict=True)},
    {f"choice{n}": text for n, text in enumerate(TEXTS, 1)},
]


def row(**columns: object) -> dict[str, Any]:
    return {"problem": "<image> Which colour comes next?", **columns, "answer": "B"}


def read(path: Path, keys: Keys | TrainerKeys | None = None) -> list[tuple[Row, list[str]]]:
    return [*judged_rows(Source.open(str(path), keys=keys or Keys()))]


def parquet(path: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist([{**row, "images": [picture()]} for row in rows]), path)
    return path


@pytest.mark.parametrize("columns", COLUMNS, ids=str)
@pytest.mark.parametrize("keys", [Keys(), TrainerKeys()])
def test_options_of_columns_are_listed_for_every_reader(
    tmp_path: Path, columns: dict[str, object], keys: Keys | TrainerKeys
) -> None:
    ((found, problems),) = read(parquet(tmp_path / "rows.parquet", row(**columns)), keys)
    assert (found.problem, problems) == (LISTED, [])
    assert [*notes_of_row(found, [b""])] == []


@pytest.mark.parametrize("columns", COLUMNS, ids=str)
def test_and_of_the_columns_of_a_csv(tmp_path: Path, columns: dict[str, object]) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file)
        cells = row(**columns) | {"image": "a.png"}
        table.writerows([cells, [str(cell) if cell is not None else "" for cell in cells.values()]])
    ((found, problems),) = read(tmp_path / "rows.csv")
    assert (found.problem, problems) == (LISTED, [])


def test_rows_of_json_have_options_or_none_each_for_itself(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    order = {"problem": "<image> What is the order?", "answer": "1 2", "images": ["a.png"]}
    rows = [order, {**row(options=TEXTS), "images": ["a.png"]}]
    found = read(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert [(row.problem, problems) for row, problems in found] == [(order["problem"], []), (LISTED, [])]


def test_a_text_that_lists_its_options_stays_as_it_is(tmp_path: Path) -> None:
    own = {**row(options=["other", "words"]), "problem": "<image> Which?\nA. left\nB. right"}
    ((found, problems),) = read(parquet(tmp_path / "rows.parquet", own))
    assert (found.problem, problems) == (own["problem"], [])


@pytest.mark.parametrize("options", ["red or blue", ["red"], [[1], [2]], {"red": "1", "blue": "2"}])
def test_options_that_cannot_be_read_make_the_row_unusable(tmp_path: Path, options: object) -> None:
    ((_, problems),) = read(parquet(tmp_path / "rows.parquet", row(options=options)))
    assert problems == [
        "answer: found 'B' and a text without options, expected those of options in problem, such as 'A. ...'"
    ]


@pytest.mark.parametrize(
    "options", [[], None, "", " ", "nan", "[]", "{}", "['', '']", ["", "nan"], float("nan")]
)
@pytest.mark.parametrize("keys", [Keys(), TrainerKeys(), TrainerKeys(prompt=None)])
def test_an_empty_column_is_as_no_column(
    tmp_path: Path, options: object, keys: Keys | TrainerKeys, tpru: Tpru
) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    problem = "<image>Which of the figures labelled A to D in the picture comes next?"
    record = {"problem": problem, "answer": "B", "images": ["a.png"], "options": options}
    path = write_jsonl(tmp_path / "rows.jsonl", [record])
    ((found, problems),) = read(path, keys)
    (*_, note) = notes_of_row(found, [b""])
    assert (found.problem, problems) == (problem, [])
    assert note.startswith("answer: found the letter B and a text without options")
    if options == [] and isinstance(keys, Keys):
        assert tpru("prepare", path, tmp_path / "out")[0] == 0
        assert [row["answer"] for row in read_result(tmp_path / "out")] == ["B"]


@pytest.mark.parametrize(
    "columns",
    [
        {"options": TEXTS},
        {"options": BY_LETTER},
        {"choices": {"text": TEXTS, "label": ["A", "B", "C"]}},
        {"A": "it's red", "B": "blue", "C": "7"},
    ],
    ids=str,
)
def test_rows_of_one_table_have_options_in_the_columns_or_in_the_picture(
    tmp_path: Path, columns: dict[str, object]
) -> None:
    path = parquet(tmp_path / "rows.parquet", row(**columns), row(**dict.fromkeys(columns)))
    assert [problems for _, problems in read(path)] == [[], []]


def test_options_that_a_trainer_or_a_prompt_would_not_show_are_an_error(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", row(options=TEXTS))
    ((_, problems),) = read(path, TrainerKeys(prompt=None))  # EasyR1 reads the text alone
    assert "expected those of options in problem" in problems[0]
    chat = {"messages": [{"role": "user", "content": row()["problem"]}], "choices": TEXTS, "answer": "B"}
    ((_, problems),) = read(parquet(tmp_path / "chat.parquet", chat))
    assert "expected those of choices in messages" in problems[0]


def test_a_letter_without_options_anywhere_is_a_warning(tmp_path: Path) -> None:
    ((found, problems),) = read(parquet(tmp_path / "rows.parquet", row(task="next_frame_prediction")))
    (note,) = notes_of_row(found, [b""])
    assert problems == []
    assert note.startswith(
        "answer: found the letter B and a text without options, expected options in the text"
    )


def test_prepared_rows_hold_the_options(tmp_path: Path, tpru: Tpru) -> None:
    path = parquet(tmp_path / "rows.parquet", row(options=TEXTS, level="hard"))
    assert tpru("prepare", path, tmp_path / "out")[0] == 0
    (found,) = read_result(tmp_path / "out")
    assert found["problem"] == LISTED
    assert LISTED in found["prompt"][0]["content"]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["source"]["columns_left_out"] == ["level"]
