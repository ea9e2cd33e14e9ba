"""Messages as OpenAI, ShareGPT and LLaVA write them: one question, its pictures and its answer."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import Tpru
from support.rows import picture, write_jsonl

from tpru_verl.data.checks import judged_rows
from tpru_verl.data.source.forms import Keys, Source
from tpru_verl.data.source.rows import Row

ASKED = "Which picture is next?\n<image><image>\nA. left\nB. right"
URIS = [f"data:image/png;base64,{base64.b64encode(picture(n)).decode()}" for n in range(2)]


def read(path: Path, **keys: Any) -> list[tuple[Row, list[str]]]:
    return [*judged_rows(Source.open(str(path), keys=Keys(**keys)))]


def openai(*urls: str, answer: str | None = "B", **first: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": "Which picture is next?\n"}]
    parts += [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    parts += [{"type": "text", "text": "\nA. left\nB. right"}]
    said = [{"role": "assistant", "content": answer}] if answer else []
    return {"messages": [*first.values(), {"role": "user", "content": parts}, *said]}


def sharegpt(question: str = ASKED, **more: Any) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": "B"}]
    return {"conversations": said, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    return tmp_path


FORMS = {
    "openai": openai(*URIS),
    "openai, files": openai("0.png", "1.png"),
    "openai, answer in a column": {**openai(*URIS, answer=None), "solution": "B"},
    "responses": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Which picture is next?\n"},
                    *({"type": "input_image", "image_url": uri} for uri in URIS),
                    {"type": "input_text", "text": "\nA. left\nB. right"},
                ],
            },
            {"role": "assistant", "content": [{"type": "output_text", "text": "B"}]},
        ]
    },
    "sharegpt": sharegpt(images=["0.png", "1.png"]),
    "llava": sharegpt(image=["0.png", "1.png"], id="000"),
    "ms-swift": {
        "messages": [{"role": "user", "content": ASKED}],
        "images": [{"bytes": None, "path": "0.png"}, {"bytes": None, "path": "1.png"}],
        "solution": "<answer>B</answer>",
    },
    "thinking": {
        "messages": [
            {"role": "user", "content": ASKED},
            {"role": "assistant", "content": "<think>It moves.</think><answer>B</answer>"},
        ],
        "images": ["0.png", "1.png"],
    },
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_each_form_gives_the_same_row(folder: Path, name: str, kind: str) -> None:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        # Arrow has no column of texts and lists: such messages are kept as JSON text.
        mixed = name.startswith(("openai", "responses"))
        row = {k: json.dumps(v) if mixed and k == "messages" else v for k, v in FORMS[name].items()}
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif kind == "json":
        path.write_text(json.dumps([FORMS[name]]))
    else:
        write_jsonl(path, [FORMS[name]])
    ((row, problems),) = read(path)
    assert (row.problem, problems) == (ASKED, [])
    assert row.images() == [picture(0), picture(1)]
    assert "B" in str(row.answer)
    assert row.messages is None  # so that the prompt template applies


def test_rows_of_messages_are_prepared_for_training(folder: Path, tpru: Tpru) -> None:
    system = {"role": "system", "content": "Answer with a letter."}
    rows = [openai(*URIS), openai(*URIS, system=system)]
    assert tpru("prepare", write_jsonl(folder / "rows.jsonl", rows), folder / "out")[0] == 0
    plain, own = pq.read_table(folder / "out/data").to_pylist()
    assert (plain["answer"], own["answer"]) == ("B", "B")
    assert "<think>" in plain["prompt"][0]["content"]
    # A system message makes it a prompt of its own, which stays what it was.
    assert own["prompt"] == [system, {"role": "user", "content": ASKED}]


def test_pictures_of_llava_lie_below_the_image_root(folder: Path) -> None:
    path = write_jsonl(folder / "a.jsonl", [sharegpt("<image>\nWhich?\nA. x\nB. y", image="0.png")])
    (folder / "coco").mkdir()
    (folder / "0.png").rename(folder / "coco/0.png")
    ((row, problems),) = read(path, image_root=folder / "coco")
    assert (row.images(), problems) == ([picture(0)], [])


def test_ranks_in_messages(folder: Path) -> None:
    said = [
        {"from": "human", "value": "<image><image> <image> Sort these in order."},
        {"from": "gpt", "value": "[3, 1, 2]"},
    ]
    path = write_jsonl(folder / "a.jsonl", [{"conversations": said, "images": [*URIS, "1.png"]}])
    assert [read(path, answers=kind)[0][0].answer for kind in ("orders", "ranks")] == ["3 1 2", "2 3 1"]


VIDEO = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]
TWICE = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": TWICE * 2}, "found 2 answers of the assistant, expected one (a row for each"),
        (openai("https://x.org/a.png", URIS[0]), "expected the picture (nothing is downloaded)"),
        (openai("../0.png", URIS[0]), "expected a path inside"),
        (
            {**openai(*URIS), "images": ["0.png"]},
            "found pictures, and others in images",
        ),
        ({"messages": [{"role": "robot", "content": "x"}]}, "found the role 'robot' in message 0"),
        ({"messages": "[{"}, "found '[{', expected a list of messages"),
        ({"messages": []}, "expected a list of messages"),
        (
            {"messages": VIDEO},
            "expected text or parts",
        ),
        (sharegpt(image="0.png"), "image: found 1, expected 2"),
        (openai(*URIS, answer=None), "messages.assistant: found None, expected an option"),
        (openai(*URIS, answer="C"), "found 'C', expected one of A, B"),
    ],
)
def test_what_cannot_be_read_is_told(folder: Path, row: dict[str, Any], message: str) -> None:
    ((_, problems),) = read(write_jsonl(folder / "rows.jsonl", [row]))
    assert any(message in text for text in problems), problems


def test_rows_of_messages_without_answers(folder: Path) -> None:
    path = write_jsonl(folder / "rows.jsonl", [openai(*URIS, answer=None)])
    ((row, problems),) = read(path, answered=False)
    assert (row.answer, problems) == (None, [])


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("images", ["0.png", "1.png"], r"images in its first row, too \(null where it has none\)"),
        ("Image", "0.png", "Image in its first row, too"),
        ("solution", "A", "solution in all rows, or --answer-key messages for the assistant's answers"),
    ],
)
def test_a_column_that_the_first_row_does_not_have_is_told(
    folder: Path, column: str, value: object, expected: str
) -> None:
    first, *others = openai(*URIS), openai(*URIS), {**openai(*URIS), column: None}
    late = {**(openai() if "image" in column.lower() else openai(*URIS)), column: value}
    path = write_jsonl(folder / "rows.jsonl", [first, *others, late])
    *sound, (_, problems) = read(path)
    assert not any(found for _, found in sound)
    assert re.match(
        f"messages: found {column} beside it, which the first row does not have, .*{expected}", problems[0]
    )
    # What the message says is done.
    if column == "solution":
        assert [row.answer for row, _ in read(path, answer="messages")] == ["B"] * 4
    else:
        write_jsonl(path, [{**first, column: None}, late])
        assert [len(row.images()) for row, _ in read(path)] == [2, 2 if column == "images" else 1]
