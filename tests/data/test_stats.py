"""Statistics: counts that can be checked by hand, whoever reads the rows, and nothing left out unsaid."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tpru_verl.data.source.forms import Source
from tpru_verl.data.source.rows import Row
from tpru_verl.data.stats import AN_ORDER, Spread, Statistics, as_json, statistics, tables, tokens_within
from tpru_verl.data.tokens.pixels import Bounds
from tpru_verl.demo.scenes import SCENES, make_rows, write_parquet
from tpru_verl.sample import NONE_OPTION, Sample, Task
from tpru_verl.terminal import VisibleConsole

REORDERING, NEXT, PREVIOUS = (task.value for task in Task)


def picture(size: tuple[int, int], format: str = "JPEG", orientation: int = 1) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.new("RGB", size, "teal").save(buffer, format, exif=exif)
    return buffer.getvalue()


def count(folder: Path, rows: Sequence[Sample], **options: object) -> Statistics:
    write_parquet(rows, folder / "rows.parquet")
    return statistics(Source.open(str(folder / "rows.parquet")), **{"workers": 1, **options})  # pyright: ignore[reportArgumentType]


def printed(found: Statistics, width: int = 100) -> str:
    console = VisibleConsole(width=width, file=io.StringIO(), record=True)
    for table in tables(found):
        console.print(table)
    return " ".join(console.export_text().replace("│", " ").split())


@pytest.fixture(scope="module")
def rows() -> list[Sample]:
    return make_rows(60, seed=5, scenes=list(SCENES))


@pytest.fixture(scope="module")
def made(rows: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    return count(tmp_path_factory.mktemp("made"), rows)


def test_rows_by_task_and_scene(made: Statistics, rows: list[Sample]) -> None:
    assert (made.rows, made.left_out) == (60, 0)
    assert list(made.tasks.items()) == [(REORDERING, 20), (NEXT, 20), (PREVIOUS, 20)]
    assert made.scenes == Counter((row.task.value, row.scene) for row in rows)
    assert "disc 5 5 5 15" in printed(made)
    assert "all 20 20 20 60" in printed(made)


def test_images_and_their_sizes(made: Statistics, rows: list[Sample]) -> None:
    assert made.images_a_row == {4: 20, 7: 40}
    assert made.sizes == {(56, 56): 360}
    assert made.formats == {"PNG": 360}
    lengths = [len(image) for row in rows for image in row.images]
    assert made.bytes == Counter(lengths)
    assert made.format_bytes == {"PNG": sum(lengths)}


def test_answers_and_none(made: Statistics, rows: list[Sample]) -> None:
    assert made.answers == Counter((row.task.value, row.answer) for row in rows)
    right = Counter(row.task.value for row in rows if row.options[row.answer] == NONE_OPTION)
    assert {task: n for task, n in made.none_right.items() if n} == right
    assert made.none_offered == made.tasks
    assert "A 20.0 % 20.0 % 20.0 % 20.0 %" in printed(made)
    assert "None offered 100.0 % 100.0 % 100.0 % 100.0 %" in printed(made)


def test_orders_rows_without_none_and_rows_without_task(rows: list[Sample], tmp_path: Path) -> None:
    images = rows[0].images
    lines = [
        {"problem": "Put these into the correct order: <image><image>", "answer": "2 1"},
        {"problem": "Which one? <image><image> A. left B. right", "answer": "B"},
        {"problem": f"Which one? <image><image> A. left B. {NONE_OPTION}.", "answer": "B"},
    ]
    for i, image in enumerate(images[:2]):
        (tmp_path / f"{i}.png").write_bytes(image)
    text = "".join(json.dumps(line | {"images": ["0.png", "1.png"]}) + "\n" for line in lines)
    (tmp_path / "rows.jsonl").write_text(text)
    found = statistics(Source.open(str(tmp_path / "rows.jsonl")))
    assert found.answers == {(REORDERING, AN_ORDER): 1, ("not recognised", "B"): 2}
    assert found.scenes == {(REORDERING, "not named"): 1, ("not recognised", "not named"): 2}
    assert (found.none_offered.total(), found.none_right.total()) == (1, 1)


def test_sizes_are_those_of_upright_pictures(rows: list[Sample], tmp_path: Path) -> None:
    images = (
        picture((40, 30)),
        picture((40, 30), orientation=6),
        picture((20, 50), "WEBP"),
        rows[0].images[0],
    )
    found = count(tmp_path, [replace(rows[0], images=images)])
    assert found.sizes == {(40, 30): 1, (30, 40): 1, (20, 50): 1, (56, 56): 1}
    assert found.formats == {"JPEG": 2, "WEBP": 1, "PNG": 1}
    assert "width 20 20 30 40 56 56 36.5" in printed(found)


def test_unusable_rows_are_counted_and_said(rows: list[Sample], tmp_path: Path) -> None:
    broken = [
        replace(rows[0], answer="Z"),
        replace(rows[0], images=rows[0].images[:2]),
        replace(rows[0], images=(b"<html>", *rows[0].images[1:])),
    ]
    found = count(tmp_path, [*broken, rows[1]])
    assert (found.rows, found.left_out, found.tasks.total()) == (4, 3, 1)
    assert found.reasons == {"images": 2, "answer": 1}
    said = "3 of 4 rows left out (images 2, answer 1); `tpru data validate` names them"
    assert said in printed(found)
    assert as_json(found)["left_out_for"] == {"images": 2, "answer": 1}
    assert "left out" not in printed(count(tmp_path, rows[:1]))


def test_a_source_of_unusable_rows_has_a_table_and_json(rows: list[Sample], tmp_path: Path) -> None:
    found = count(tmp_path, [replace(rows[0], answer="Z")])
    assert "1 of 1 rows left out (answer 1)" in printed(found)
    assert json.loads(json.dumps(as_json(found)))["tasks"] == {}


def test_visual_tokens_of_a_row_are_those_of_its_pictures(rows: list[Sample], tmp_path: Path) -> None:
    found = count(tmp_path, rows, tokens=lambda sizes: sum(width * height for width, height in sizes) // 784)
    assert found.visual_tokens == {16: 20, 28: 40}
    assert "visual 16 16 28 28 28 28 24.0" in printed(found)
    assert "Tokens" not in printed(count(tmp_path, rows[:1]))


def test_prompt_lengths_are_those_of_row_and_images(rows: list[Sample], tmp_path: Path) -> None:
    def images_and_words(row: Row) -> int:
        return 100 * len(row.images()) + len(str(row.problem).split())

    for workers in (1, 2):  # a function of a function can't be sent to another process
        found = count(tmp_path, rows, tokens_a_row=images_and_words, workers=workers)
        assert found.tokens == Counter(100 * len(row.images) + len(row.problem.split()) for row in rows)
        assert "whole prompt" in printed(found)


def test_counts_do_not_depend_on_the_workers(rows: list[Sample], tmp_path: Path) -> None:
    for part in range(2):
        write_parquet(rows[30 * part : 30 * part + 30], tmp_path / f"train-{part}.parquet")
    source = Source.open(str(tmp_path))
    one, two = (statistics(source, tokens=len, workers=workers) for workers in (1, 2))
    assert one == two
    assert one.visual_tokens == {4: 20, 7: 40}
    assert json.dumps(as_json(one)) == json.dumps(as_json(two))


def test_images_are_counted_within_the_bounds() -> None:
    paper = tokens_within(Bounds())
    assert paper([(56, 56)]) == 25  # enlarged to 140 x 140
    assert paper([(640, 480)]) == 5 * 7  # 140 x 196: whole tokens, within the bounds
    assert paper([(480, 640), (56, 56)]) == 35 + 25
    assert paper([(56, 56), (9, 1800)]) == 25  # a side vanishes
    assert tokens_within(Bounds(1, 10**6))([(56, 84)]) == 6
    assert tokens_within(Bounds(1, 10**6, 32))([(64, 96)]) == 6


def test_names_out_of_the_data_are_printed_as_they_are(rows: list[Sample], tmp_path: Path) -> None:
    many = [replace(row, scene=f"scene {i:02d}") for i, row in enumerate(rows[:30])]
    scenes = ["[red]one[/red]", "two\x1b[31m"]
    found = count(tmp_path, [*many, *(replace(rows[0], scene=scene) for scene in scenes for _ in range(2))])
    text = printed(found, width=140)
    assert "[red]one[/red] 2 0 0 2" in text
    assert "\x1b" not in text
    assert "12 more 4 4 4 12" in text
    assert len(json.dumps(as_json(found)).split("scene ")) == 31  # all of them


def test_json_holds_what_the_tables_say(made: Statistics) -> None:
    found = json.loads(json.dumps(as_json(made)))
    assert (found["rows"], found["left_out"], found["images"]) == (60, 0, 360)
    assert found["tasks"][NEXT]["scenes"] == {"block": 5, "bricks": 5, "disc": 5, "track": 5}
    assert found["tasks"][NEXT]["answers"] == dict.fromkeys("ABCDE", 4)
    assert found["images_a_row"] == {"4": 20, "7": 40}
    assert found["sizes"] == {"56 x 56": 360}
    assert found["width"]["median"] == 56
    assert "tokens_a_row" not in found


@given(st.lists(st.integers(0, 1000), min_size=1))
def test_quantiles_are_values_that_occur(values: list[int]) -> None:
    spread = Spread.of(Counter(values))
    assert spread
    ordered = sorted(values)
    assert spread[:3] == (len(values), sum(values), ordered[0])
    assert list(spread[2:]) == sorted(spread[2:])
    assert set(spread[2:]) <= set(values)
    assert spread.median == ordered[(len(values) - 1) // 2]
    assert spread.max == ordered[-1]


def test_no_value_has_no_spread() -> None:
    assert Spread.of({}) is None
