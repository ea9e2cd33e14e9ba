"""`tpru eval predict`: from a contest's tables to its submission, by the commands of docs/contest.md."""

import csv
import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.endpoint import Asked, endpoint
from support.rows import picture, reordering, write_parquet

from tpru_verl import cli
from tpru_verl.eval.predict import _values

Tpru = Callable[..., tuple[object, str, str]]

# The place in time of each picture as shown, by what the row says. Neither is its own inverse.
RANKS = {"A disc grows.": [3, 1, 4, 2], 'A "red" bar, drawn first, fills up.': [2, 3, 1, 4]}
ORDERS = {"A disc grows": "2 4 1 3", 'A "red" bar, drawn first, fills up': "3 1 2 4"}
COLUMNS = [f"Input_{i}" for i in (1, 2, 3, 4)]


def table(folder: Path, name: str, *, answered: bool) -> None:
    """`NAME.csv` and the pictures below `NAME/ID`, as contests give them."""
    lines = []
    for k, (sentence, ranks) in enumerate(RANKS.items()):
        row, files = f"Row{k}", [f"Row{k}_{i}.png" for i in range(4)]
        (folder / name / row).mkdir(parents=True)
        for i, file in enumerate(files):
            (folder / name / row / file).write_bytes(picture(10 * k + i, (56, 56)))
        cells = {"Id": row, **dict(zip(COLUMNS, files, strict=True)), "Sentence": sentence}
        lines.append({**cells, "Answer": str(ranks)} if answered else cells)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def order_asked(asked: Asked) -> list[str]:
    (order,) = [order for sentence, order in ORDERS.items() if sentence in asked.text]
    return order.split()


def knowing(asked: Asked) -> Mapping[str, float]:
    """The likeliest next label of a model that has learned the rows."""
    order, said = order_asked(asked), asked.text.rpartition("<answer>")[2].split()
    wanted = order[len(said)] if order[: len(said)] == said else ""
    return {" " * bool(said) + label: math.log(0.85 if label == wanted else 0.05) for label in "1234"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    table(tmp_path, "train", answered=True)
    table(tmp_path, "test", answered=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def documented(root: Path, start: str) -> list[str]:
    """Arguments of the command in docs/contest.md that begins with `start`."""
    text = (root / "docs/contest.md").read_text().replace("\\\n", " ")
    (line,) = re.findall(rf"^{start} .*$", text, re.MULTILINE)
    return shlex.split(line)[2:]


def rows_of(path: str) -> list[list[str]]:
    with Path(path).open(newline="") as file:
        return [*csv.reader(file)]


def test_the_commands_of_the_page(
    root: Path, folder: Path, tpru_eval: Tpru, monkeypatch: pytest.MonkeyPatch
) -> None:
    *arguments, _ = documented(root, "tpru data prepare")
    monkeypatch.setattr(sys, "argv", ["tpru", "data", "prepare", *arguments[1:], "train=1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    (shard,) = (folder / "prepared").rglob("*.parquet")
    answers = {row["problem"]: row["answer"] for row in pq.read_table(shard).to_pylist()}
    assert {order for sentence, order in ORDERS.items() for text in answers if sentence in text} == {
        *answers.values()
    }
    name, _, *arguments = documented(root, "tpru eval predict")
    with endpoint(tops=knowing) as server:
        code, _, err = tpru_eval(name, "tiny", *arguments, "--base-url", server.url)
        assert code == 0, err
        assert "answers.csv: 2 of 2 answers" in err
        submission = [["Id", "Answer"], *([f"Row{k}", str(ranks)] for k, ranks in enumerate(RANKS.values()))]
        assert rows_of("answers.csv") == submission
        asked = len(server.asked)
        tpru_eval(name, "tiny", *arguments, "--base-url", server.url)
        assert len(server.asked) == asked == 2 * 17


KEYS = ["--problem-key", "Sentence", "--image-key", ",".join(COLUMNS), "--image-root", "test"]


@pytest.mark.parametrize(
    ("options", "rule", "lines"),
    [
        (["--answers", "orders"], "<answer>{}</answer>", [["id", "answer"], ["Row0", "[2, 4, 1, 3]"]]),
        (
            ["--answers", "ranks", "--column", "x=response", "--column", "y=answer"],
            "so {}",
            [["x", "y"], ["so 2 4 1 3", "[3, 1, 4, 2]"]],
        ),
        (["--answers", "ranks"], "<answer>1 2 3</answer>", [["id", "answer"], ["Row0", ""]]),
    ],
)
def test_what_the_model_writes(
    folder: Path, tpru_eval: Tpru, options: list[str], rule: str, lines: list[list[str]]
) -> None:
    with endpoint(lambda asked: rule.format(" ".join(order_asked(asked)))) as server:
        args = ["predict", "tiny", "--base-url", server.url, "--rows", "test.csv", "--out", "a.csv", *KEYS]
        code, _, err = tpru_eval(*args, *options)
    assert code == 0, err
    assert rows_of("a.csv")[:2] == lines
    empty = not lines[1][-1]
    assert f"a.csv: {0 if empty else 2} of 2 answers" in err
    assert (
        "2 of the responses without a readable answer: Row0, Row1; --decide guided or score" in err
    ) == empty


def test_options_of_rows_with_answers(tpru_eval: Tpru, tmp_path: Path) -> None:
    rows = [{**reordering(i), "id": f"r{i}"} for i in (2, 1)]
    source, out = write_parquet(tmp_path / "rows.parquet", rows), tmp_path / "new/a.tsv"
    with endpoint(tops=lambda asked: {"D": math.log(0.5), "A": math.log(0.25), "C": -30.0}) as server:
        args = ["predict", "tiny", "--base-url", server.url, "--rows", source, "--out", out]
        code, _, err = tpru_eval(*args, "--decide", "score")
    assert code == 0, err
    assert out.read_text() == "id\tanswer\tprobability\nr2\tD\t0.666667\nr1\tD\t0.666667\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "a.txt", "--answers", "ranks"], "--out: found '.txt', expected .csv or .tsv"),
        (
            ["--column", "Id=name"],
            "--column: found 'name', expected one of id, answer, probability, response",
        ),
        (["--column", "p=probability"], "expected --decide score"),
        (
            ["--decide", "score,guided"],
            "--decide: found 'score,guided', expected one of generate, guided, score",
        ),
        ([], "say with --answers orders"),
        (["--answers", "ranks", "--image-root", "tests"], "--image-root: found no folder tests"),
        (["--answers", "ranks", "--image-root", "."], "2 of 2 rows cannot be asked"),
        (
            ["--answers", "ranks", "--column", "Id=id", "--column", "Id=answer"],
            "--column: found 'Id' twice, expected each name once",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_asked(
    folder: Path, tpru_eval: Tpru, options: list[str], said: str
) -> None:
    args = ["predict", "tiny", "--base-url", "http://127.0.0.1:9/v1", "--rows", "test.csv", "--out", "a.csv"]
    code, _, err = tpru_eval(*args, *KEYS, *options)
    assert said in str(code) + err
    assert not (folder / "a.csv").exists()


@pytest.mark.parametrize("said", ["=1+1", " @SUM(A1)", "+1", "-1"])
def test_a_response_is_no_formula(said: str) -> None:
    result: Any = {"id": "=1", "parsed": "B", "samples": [{"response": said, "probabilities": None}]}
    found = _values(result, None)
    assert found["response"] == f"'{said}"
    assert (found["id"], found["answer"]) == ("=1", "B")  # a contest compares them
    result["samples"][0]["response"] = "1=1"
    assert _values(result, None)["response"] == "1=1"


def test_an_id_that_comes_twice(folder: Path, tpru_eval: Tpru) -> None:
    lines = (folder / "test.csv").read_text().splitlines()
    (folder / "test.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    args = ["predict", "tiny", "--base-url", "http://127.0.0.1:9/v1", "--rows", "test.csv", "--out", "a.csv"]
    code, _, _ = tpru_eval(*args, *KEYS, "--answers", "ranks")
    assert "found the id 'Row0' twice" in str(code)


def test_ids_that_look_like_numbered_ones(tpru_eval: Tpru, tmp_path: Path) -> None:
    rows = [{**reordering(i), "id": f"clip#{i}"} for i in (1, 2, 3)]
    source, out = write_parquet(tmp_path / "rows.parquet", rows), tmp_path / "a.csv"
    with endpoint(lambda asked: "<answer>B</answer>") as server:
        args = ["predict", "tiny", "--base-url", server.url, "--rows", source, "--out", out]
        code, _, err = tpru_eval(*args)
    assert code == 0, err
    assert out.read_text() == "id,answer\nclip#1,B\nclip#2,B\nclip#3,B\n"


REFUSED = (400, b'{"error": {"message": "the prompt is too long"}}')


@pytest.mark.parametrize(
    ("decide", "refused", "answers", "said"),
    [
        ("generate", ["Row0", "Row1"], 0, "2 requests failed, the first: row Row0: HTTP 400: the prompt is"),
        ("generate", ["Row1"], 1, "1 request failed, the first: row Row1: HTTP 400: the prompt is too long"),
        ("score", [], 0, "2 requests failed, the first: row Row0: found no log-probabilities"),
    ],
)
def test_requests_that_fail(
    folder: Path, tpru_eval: Tpru, decide: str, refused: list[str], answers: int, said: str
) -> None:
    sentences = [sentence for row, sentence in zip(("Row0", "Row1"), ORDERS, strict=True) if row in refused]

    def fault(number: int, asked: Asked) -> tuple[int, bytes] | None:
        return REFUSED if any(sentence in asked.text for sentence in sentences) else None

    with endpoint(lambda asked: " ".join(order_asked(asked)), fault=fault) as server:
        args = ["predict", "tiny", "--base-url", server.url, "--rows", "test.csv", "--out", "a.csv", *KEYS]
        code, _, err = tpru_eval(*args, "--answers", "ranks", "--decide", decide)
    assert code == 3, err
    assert f"a.csv: {answers} of 2 answers" in err
    assert said in err
    assert "--decide guided or score" not in err
    empty = [row for row, answer, *_ in rows_of("a.csv")[1:] if not answer]
    assert empty == (refused or ["Row0", "Row1"])


def test_a_row_with_equal_options_has_its_id_in_the_table(tpru_eval: Tpru, tmp_path: Path) -> None:
    good, bad = ({**reordering(i), "id": f"r{i}"} for i in (1, 2))
    bad["problem"] = re.sub(r"(?m)^(B[.)] ).*$", r"\1None of the choices provided", bad["problem"])
    source, out = write_parquet(tmp_path / "rows.parquet", [bad, good]), tmp_path / "a.csv"
    with endpoint(lambda asked: "<answer>B</answer>") as server:
        args = ["predict", "tiny", "--base-url", server.url, "--rows", source, "--out", out]
        code, _, err = tpru_eval(*args)
    assert code == 3, err
    assert out.read_text() == "id,answer\nr2,\nr1,B\n"
    assert "2 times, expected distinct options" in err


def test_a_picture_that_is_lost_leaves_one_cell_empty(folder: Path, tpru_eval: Tpru) -> None:
    (folder / "test/Row0/Row0_2.png").unlink()
    with endpoint(lambda asked: " ".join(order_asked(asked))) as server:
        args = ["predict", "tiny", "--base-url", server.url, "--rows", "test.csv", "--out", "a.csv", *KEYS]
        code, _, err = tpru_eval(*args, "--answers", "ranks")
    assert code == 3, err
    assert rows_of("a.csv") == [["id", "answer"], ["Row0", ""], ["Row1", "[2, 3, 1, 4]"]]
    assert "a.csv: 1 of 2 answers" in err
    assert "1 of 2 rows cannot be asked" in err
    assert "1 row of the data is broken, the first: row Row0: test.csv row 0: " in err


@pytest.mark.parametrize("placeholder", ["", "0", "A"])
def test_a_column_of_placeholders_is_not_read(folder: Path, tpru_eval: Tpru, placeholder: str) -> None:
    with (folder / "test.csv").open(newline="") as file:
        records = [{**record, "Answer": placeholder} for record in csv.DictReader(file)]
    with (folder / "test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    with endpoint(lambda asked: " ".join(order_asked(asked))) as server:
        args = ["predict", "tiny", "--base-url", server.url, "--rows", "test.csv", "--out", "a.csv", *KEYS]
        code, _, err = tpru_eval(*args, "--answers", "ranks")
    assert code == 0, err
    assert "test.csv: answers are not read: Answer" in err
    assert [answer for _, answer in rows_of("a.csv")[1:]] == [str(ranks) for ranks in RANKS.values()]


@pytest.mark.parametrize(
    "text",
    [
        "Put the images A-D into order: <image><image><image><image>",
        "What is the correct order?\nImage A: <image>\nImage B: <image>\nImage C: <image>\nImage D: <image>",
    ],
)
def test_orders_of_letters(tpru_eval: Tpru, tmp_path: Path, text: str) -> None:
    row = {"problem": text, "answer": "", "images": reordering(1)["images"][:4], "id": "r1"}
    source, out = write_parquet(tmp_path / "rows.parquet", [row]), tmp_path / "a.csv"
    with endpoint(lambda asked: "<answer>BDAC</answer>") as server:
        args = ["predict", "tiny", "--base-url", server.url, "--rows", source, "--out", out]
        code, _, err = tpru_eval(*args)
    assert code == 0, err
    assert out.read_text() == "id,answer\nr1,B D A C\n"
