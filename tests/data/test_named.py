"""Tables with named columns: pictures in columns, and answers as letters, orders or ranks, never guessed."""

import csv
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from support.commands import Tpru
from support.rows import picture, write_jsonl

from tpru_verl.data.checks import judged_rows, problems_of_row
from tpru_verl.data.source.forms import Keys, Source
from tpru_verl.data.source.named import ranks_of
from tpru_verl.data.source.rows import Row
from tpru_verl.grading import grade
from tpru_verl.sample import Task

COLUMNS = ["Id", "Input_1", "Input_2", "Input_3", "Input_4", "Sentence", "Answer"]
KEYS: dict[str, Any] = {"problem": "Sentence", "images": "Input_1,Input_2,Input_3,Input_4"}


def table(folder: Path, answers: list[str], *, suffix: str = "csv", **changes: list[str]) -> Path:
    """Four pictures a row, each in a folder of the row's id; answer by answer a row."""
    path = folder / f"train.{suffix}"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="," if suffix == "csv" else "\t")
        writer.writerow(COLUMNS)
        for i, answer in enumerate(answers):
            below = folder / "pictures" / f"r{i}"
            below.mkdir(parents=True)
            names = [f"r{i}_{mark}.png" for mark in "kbxa"]
            for n, name in enumerate(names):
                (below / name).write_bytes(picture(10 * i + n))
            writer.writerow([f"r{i}", *names, 'A "red" disc,\ndrawn first, grows.', answer])
    return path


def read(path: Path, **keys: Any) -> list[tuple[Row, list[str]]]:
    return [*judged_rows(Source.open(str(path), keys=Keys(**{**KEYS, **keys})))]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_pictures_lie_under_a_folder_by_id_and_a_question_is_asked(tmp_path: Path, suffix: str) -> None:
    path = table(tmp_path, ["[2, 1, 4, 3]", "[3, 1, 4, 2]"], suffix=suffix)
    (first, problems), (second, others) = read(path, image_root=tmp_path / "pictures", answers="ranks")
    assert (problems, others) == ([], [])
    assert first.images() == [picture(n) for n in range(4)]
    assert second.images() == [picture(10 + n) for n in range(4)]
    assert (first.row_id, first.task) == ("r0", Task.TEMPORAL_REORDERING)
    assert str(first.problem).count("<image>") == 4
    assert 'A "red" disc,\ndrawn first, grows. Below are 4 images' in str(first.problem)
    # Rank 1 is the second picture's, rank 2 the fourth's.
    assert [first.answer, second.answer] == ["2 1 4 3", "2 4 1 3"]
    assert grade("<think>x</think><answer>2 4 1 3</answer>", str(second.answer)).accuracy == 1


def test_ranks_and_orders_are_each_others_inverse() -> None:
    for order in permutations(range(1, 5)):
        ranks = ranks_of(order)
        assert [ranks[picture - 1] for picture in order] == [1, 2, 3, 4]
        assert tuple(ranks_of(ranks)) == order


@pytest.mark.parametrize("form", ["[3, 1, 4, 2]", "3 1 4 2", "3142", "[2, 0, 3, 1]", "3->1->4->2"])
@pytest.mark.parametrize(("kind", "right"), [("orders", "3 1 4 2"), ("ranks", "2 4 1 3")])
def test_answers_are_of_the_kind_that_was_named(tmp_path: Path, form: str, kind: str, right: str) -> None:
    ((row, problems),) = read(table(tmp_path, [form]), image_root=tmp_path / "pictures", answers=kind)
    assert (row.answer, problems) == (right, [])


def test_an_order_that_may_be_ranks_is_asked_for_and_never_guessed(tmp_path: Path) -> None:
    path = table(tmp_path, ["[2, 1, 4, 3]", "[3, 1, 4, 2]"])  # the first is its own inverse
    with pytest.raises(ValueError, match=r"row 1: found Answer '\[3, 1, 4, 2\]'.*--answers orders.*ranks"):
        read(path, image_root=tmp_path / "pictures")


@pytest.mark.parametrize("answer", ["[1, 2, 3]", "[1, 2, 2, 4]", "B", "", "[1, 2, 3, 5]", "D C B A"])
def test_an_answer_of_another_kind_makes_its_row_unusable(tmp_path: Path, answer: str) -> None:
    ((_, problems),) = read(table(tmp_path, [answer]), image_root=tmp_path / "pictures", answers="ranks")
    assert any(text.startswith("Answer: found") for text in problems)


def test_rows_without_answers_do_only_where_a_command_asks_for_none(tmp_path: Path) -> None:
    path = table(tmp_path, ["", ""])
    keys = {"image_root": tmp_path / "pictures", "answers": "ranks"}
    assert all(problems for _, problems in read(path, **keys))
    found = read(path, **keys, answered=False)
    assert [problems for _, problems in found] == [[], []]
    assert "correct sequence" in str(found[0][0].problem)
    path.write_text("\n".join(",".join(line.split(",")[:-1]) for line in path.read_text().split("\n")))
    with pytest.raises(ValueError, match="--answer-key"):
        read(path, problem="Id", images="Input_1", **keys)


def test_letters_take_their_options_from_columns_or_from_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    text = "Look. Which one?"
    rows = [{"text": text, "picture": "a.png", "A": "red", "B": "blue", "reply": "B"}]
    rows += [{"text": f"{text}\nA. red\nB. blue", "picture": "a.png", "reply": "B"}]
    keys = {"problem": "text", "images": "picture", "answer": "reply", "answers": "letters"}
    for row, problems in read(write_jsonl(tmp_path / "rows.jsonl", rows), **keys):
        assert (row.problem, row.answer, problems) == (f"<image>{text}\nA. red\nB. blue", "B", [])
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"text": text, "picture": "a.png", "reply": "B"}])
    ((_, problems),) = read(bare, **keys)
    assert problems == [
        "reply: found no options in the row, expected lines such as 'A. ...', or columns A, B, ..."
    ]


def test_json_rows_with_lists(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    row = {"caption": "A disc grows", "frames": [f"{n}.png" for n in range(4)], "ranks": [3, 1, 4, 2]}
    keys = {"problem": "caption", "images": "frames", "answer": "ranks", "answers": "ranks"}
    ((found, problems),) = read(write_jsonl(tmp_path / "rows.jsonl", [row]), **keys)
    assert (found.answer, problems, len(found.images())) == ("2 4 1 3", [], 4)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("a;b;c", "found ';' between the names of columns, expected ','"),
        ("a,b,a", "found the column 'a' twice"),
        ("a,pic1,pic2", "such as --image-key pic1,pic2"),
    ],
)
def test_a_table_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, head: str, message: str) -> None:
    (tmp_path / "rows.csv").write_text(f"{head}\n{head}\n")
    with pytest.raises(ValueError, match=message):
        Source.open(str(tmp_path / "rows.csv"))


@pytest.mark.parametrize("key", [None, "Id"])
def test_the_pictures_of_a_folder_named_by_the_id_are_in_the_order_of_their_numbers(
    tmp_path: Path, key: str | None
) -> None:
    for n, name in enumerate(["1.png", "2.png", "10.png", "11.png"]):
        (tmp_path / "frames/7").mkdir(parents=True, exist_ok=True)
        (tmp_path / "frames/7" / name).write_bytes(picture(n))
    (tmp_path / "frames/7/.DS_Store").write_bytes(b"x")
    (tmp_path / "rows.csv").write_text("Id,Sentence,Answer\n7,A disc grows,3 1 4 2\n")
    keys = {"images": key, "image_root": tmp_path / "frames", "answers": "orders"}
    ((row, problems),) = read(tmp_path / "rows.csv", **keys)
    assert (problems, row.images()) == ([], [picture(n) for n in range(4)])
    (tmp_path / "frames/7/start.png").write_bytes(picture(9))
    ((_, problems),) = read(tmp_path / "rows.csv", **keys)
    assert "'1.png' and 'start.png', whose order is ambiguous" in problems[0]


def test_the_id_0_names_a_folder_as_any_other(tmp_path: Path) -> None:
    rows = [{"id": i, "text": "A disc grows", "picture": ["a.png", "b.png"], "answer": "2 1"} for i in (0, 1)]
    for i in (0, 1):
        (tmp_path / f"frames/{i}").mkdir(parents=True)
        for n, name in enumerate("ab"):
            (tmp_path / f"frames/{i}/{name}.png").write_bytes(picture(2 * i + n))
    keys = {"problem": "text", "images": "picture", "image_root": tmp_path / "frames", "answers": "orders"}
    found = read(write_jsonl(tmp_path / "rows.jsonl", rows), **keys)
    assert [problems for _, problems in found] == [[], []]
    assert found[0][0].images() == [picture(0), picture(1)]


@pytest.mark.parametrize("name", ["3.tif", "3.JP2", "3.heic", "3.png.part", "3", "3.mp4"])
def test_a_folder_with_more_than_readable_pictures_makes_its_row_unusable(tmp_path: Path, name: str) -> None:
    for n in (1, 2, 4, 5):
        (tmp_path / "frames/7").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"frames/7/{n}.PNG").write_bytes(picture(n))
    for beside in ("description.txt", "times.json", ".hidden.tif", "Thumbs.db"):
        (tmp_path / "frames/7" / beside).write_bytes(b"x")
    (tmp_path / "rows.csv").write_text("id,Sentence,Answer\n7,A disc grows,3 1 4 2\n")
    keys = {"images": None, "image_root": tmp_path / "frames", "answers": "orders"}
    ((row, problems),) = read(tmp_path / "rows.csv", **keys)
    assert (problems, len(row.images())) == ([], 4)
    (tmp_path / "frames/7" / name).write_bytes(picture(3))
    ((_, problems),) = read(tmp_path / "rows.csv", **keys)
    found = f"Sentence: found '7/{name}' in a folder of pictures, expected .jpg, "
    assert [problem.startswith(found) for problem in problems] == [True]


@pytest.mark.parametrize("inner", ["thumbnails", "3.png", "3"])
def test_a_folder_in_a_folder_of_pictures_does_not_count(tmp_path: Path, inner: str) -> None:
    (tmp_path / "frames/7" / inner).mkdir(parents=True)
    (tmp_path / "frames/7" / inner / "9.png").write_bytes(picture(9))
    for n in (1, 2):
        (tmp_path / f"frames/7/{n}.png").write_bytes(picture(n))
    (tmp_path / "rows.csv").write_text("id,Sentence,Answer\n7,A disc grows,2 1\n")
    keys = {"images": None, "image_root": tmp_path / "frames", "answers": "orders"}
    ((row, problems),) = read(tmp_path / "rows.csv", **keys)
    assert (problems, row.images()) == ([], [picture(1), picture(2)])
    (tmp_path / "frames/7/8.png").symlink_to("gone.png")  # not left out
    ((_, problems),) = read(tmp_path / "rows.csv", **keys)
    assert problems[0] == "Answer: found '2 1', expected the numbers 1 to 3, one for each image"


def test_a_picture_that_lies_elsewhere_is_told_with_the_option(tmp_path: Path) -> None:
    ((_, problems),) = read(table(tmp_path, ["[3, 1, 4, 2]"]), answers="ranks")
    assert problems[0].endswith("; --image-root names another folder")


def test_a_picture_outside_of_the_folder_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    path = table(tmp_path, ["[3, 1, 4, 2]"])
    path.write_text(path.read_text().replace("r0_k.png", "../secret.png"))
    ((row, problems),) = read(path, image_root=tmp_path / "pictures", answers="ranks")
    assert "expected a path inside" in problems[0]
    assert [*problems_of_row(row)] == problems


@pytest.mark.parametrize("name", ["..", "../..", "7/..", ".", "/", "link"])
def test_an_id_that_leads_out_of_the_folder_lists_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "frames/7").mkdir(parents=True)
    (tmp_path / "frames/link").symlink_to(tmp_path)
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
        (tmp_path / f"frames/{n}.png").write_bytes(picture(n))
    (tmp_path / "rows.csv").write_text(f"id,text,answer\n{name},A disc grows,3 1 4 2\n")
    keys = {"images": None, "problem": "text", "image_root": tmp_path / "frames", "answers": "orders"}
    ((_, problems),) = read(tmp_path / "rows.csv", **keys)
    assert any(f"found {name!r}, expected a path inside" in problem for problem in problems)
    assert not any(".png" in problem for problem in problems)


def test_the_commands_from_a_contest_to_rows(tmp_path: Path, tpru: Tpru) -> None:
    path = table(tmp_path, ["[3, 1, 4, 2]", "[4, 1, 2, 3]", "[2, 3, 1, 4]", "[2, 1, 3, 4]"])
    described = ["--problem-key", "Sentence", "--image-key", KEYS["images"]]
    described += ["--image-root", str(tmp_path / "pictures"), "--answers", "ranks"]
    out = tmp_path / "rows"
    assert tpru("prepare", path, out, *described)[0] == 0
    rows = read(out, problem=None, images=None)
    assert [row.answer for row, _ in rows] == ["2 4 1 3", "2 3 4 1", "3 1 2 4", "2 1 3 4"]
    assert [problems for _, problems in rows] == [[]] * 4
