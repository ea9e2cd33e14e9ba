"""The audit finds rows with a second right answer: what fills a row's gap is told by other rows."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import ImageDraw
from support.frames import encoded, screen
from support.rows import Row, write_parquet

from tpru_verl.data.audit.measure import audit
from tpru_verl.data.audit.report import verdict
from tpru_verl.data.audit.second import SECOND, WRONG_NONE, PicturesOfRows, RowPictures, second_answers
from tpru_verl.data.source.forms import Source
from tpru_verl.sample import IMAGE_TAG, NONE_OPTION

FACTS = "These photos show how a cup is bought. "


def shown(name: str, minute: int = 0) -> bytes:
    return encoded(screen(name, minute), "PNG")


def ordered(source: int, names: list[str]) -> Row:
    frames = "\n".join(f"Image {i + 1}: {IMAGE_TAG}" for i in range(4))
    listed = f"A. 1 2 3 4\nB. 2 1 3 4\nC. 1 2 4 3\nD. {NONE_OPTION}"
    problem = f"{FACTS}Below are 4 images in random order. What is the correct sequence?\n{frames}\n{listed}"
    row = {"problem": problem, "answer": "A", "images": [shown(name, source) for name in names]}
    return {**row, "id": f"order-{source}", "source_id": str(source), "scene": "phone"}


def asked(
    source: int, given: list[str], options: list[bytes], answer: str, lead: str = FACTS, step: int = 3
) -> Row:
    numbers = [number for number in (1, 2, 3, 4) if number != step]
    steps = "\n".join(f"Step {number}: {IMAGE_TAG}" for number in numbers)
    listed = "\n".join(f"{letter}. {IMAGE_TAG}" for letter in "ABCD"[: len(options)])
    problem = f"{lead}Steps of a process are given. Which option shows step {step}?\n{steps}\n{listed}"
    problem += f"\n{'ABCDE'[len(options)]}. {NONE_OPTION}"
    images = [*(shown(name, source) for name in given), *options]
    row = {"problem": problem, "answer": answer, "images": images, "scene": "phone"}
    return {**row, "id": f"asked-{source}", "source_id": str(source)}


# What is done: home, app, search, list, item, done. Next-frame rows give steps 1, 2 and 4.
GIVEN, PREVIOUS = ["home", "app", "item"], ["search", "item", "done"]
CASES: list[tuple[Row, str]] = [
    (asked(1, GIVEN, [shown("list", 1), shown("x"), shown("y"), shown("z")], "A"), ""),
    (asked(2, GIVEN, [shown("list", 2), shown("search", 500), shown("y"), shown("z")], "A"), SECOND),
    (asked(3, GIVEN, [shown("x"), shown("list", 400), shown("y"), shown("z")], "E"), WRONG_NONE),
    (asked(4, GIVEN, [shown("x"), shown("home", 400), shown("done"), shown("z")], "E"), ""),
    (asked(5, PREVIOUS, [shown("app", 5), shown("home", 77), shown("x"), shown("y")], "A", step=1), SECOND),
    (asked(6, PREVIOUS, [shown("app", 6), shown("done", 77), shown("x"), shown("y")], "A", step=1), ""),
    (asked(7, GIVEN, [shown("x"), shown("list", 7), shown("y"), shown("z")], "E", "It rains. "), ""),
    (asked(8, GIVEN, [shown("list", 8), shown("list", 300), shown("y"), shown("z")], "A"), SECOND),
]


def test_second_right_answers_are_found(tmp_path: Path) -> None:
    rows: list[Row] = []
    for source, (row, _) in enumerate(CASES, 1):
        orders = (["home", "app", "search", "item"], ["app", "list", "item", "done"])
        rows += [row, *(ordered(source, names) for names in orders)]
    for other in range(20, 32):  # other tasks, which tell where the clock is
        rows.append(ordered(other * 7, ["home", "app", f"thing {other}", f"end {other}"]))
    found = audit(Source.open(str(write_parquet(tmp_path / "rows.parquet", rows))), workers=1)
    expected = {f"asked-{source}": reason for source, (_, reason) in enumerate(CASES, 1)}
    assert found.compared == len(CASES)
    assert dict(found.doubtful) == {name: reason for name, reason in expected.items() if reason}
    assert "4 of 8 rows may not have exactly one right answer" in verdict(found)


def test_a_candidate_that_is_as_far_off_as_a_small_step_is_no_second_answer() -> None:
    """An agent of 6 or 7 pixels that moves through a maze: 12 to 14 of 4096 pixels change in a step."""
    greys = {}
    for place in range(8):
        picture = np.zeros((64, 64), np.uint8)
        picture[8 * place, : 6 + place % 2] = 200
        greys[bytes([place])] = picture
    frames = [*greys]
    rows = [RowPictures(f"order-{i}", "maze", "maze", "", "go", tuple(frames[i : i + 4])) for i in range(5)]
    steps = (frames[2], frames[3], frames[4], frames[6])
    asked = RowPictures(
        "asked", "maze", "maze", "", "go", steps, frames[3], frames[6], frames[4], (frames[0],)
    )
    assert len({int((greys[a] != greys[b]).sum()) for a, b in pairwise(frames)}) == 1
    assert second_answers(PicturesOfRows([*rows, asked], greys)) == []
    greys[b"same"] = greys[frames[4]].copy()
    greys[b"same"][0, 60:63] = 200  # the right one, with a speck
    second = RowPictures(
        "asked", "maze", "maze", "", "go", steps, frames[3], frames[6], frames[4], (b"same",)
    )
    assert second_answers(PicturesOfRows([*rows, second], greys)) == [("asked", SECOND)]


def test_a_text_of_another_clip_is_no_wrong_none(tmp_path: Path) -> None:
    """Most clips are about a cup, and clips of one source have texts of their own."""
    rows = [ordered(other, ["home", "app", f"a{other}", "end"]) for other in range(20, 40)]
    cup, tea = FACTS, "These photos show how tea is made. "
    for source in range(1, 5):
        own = [
            ordered(source, names)
            for names in (["home", "app", "list", "item"], ["app", "list", "item", "x"])
        ]
        for row in own if source < 4 else own[:1]:
            row["problem"] = str(row["problem"]).replace(FACTS, tea)
        options = [shown("x"), shown("list", source), shown("y"), shown("z")]
        # The text is the most frequent one of all, one of no clip, one of another clip, or one of two clips.
        lead = {1: cup, 2: "It rains. ", 3: cup, 4: cup}[source]
        rows += [*own, asked(source, GIVEN, options, "E", lead)]
    found = audit(Source.open(str(write_parquet(tmp_path / "rows.parquet", rows))), workers=1)
    assert (found.compared, found.doubtful) == (4, [])


def test_options_of_a_row_are_compared_without_sources_too(tmp_path: Path) -> None:
    rows = [ordered(other * 7, ["home", "app", f"thing {other}", f"end {other}"]) for other in range(20, 32)]
    bar = screen("list", 300)
    ImageDraw.Draw(bar).rectangle((0, 0, bar.width, bar.height // 32), fill="red")
    rows.append(asked(1, GIVEN, [shown("list", 1), encoded(bar, "PNG"), shown("y"), shown("z")], "A"))
    rows.append(asked(2, GIVEN, [shown("list", 2), shown("x", 2), shown("y"), shown("z")], "A"))
    for row in rows:
        del row["source_id"]
    found = audit(Source.open(str(write_parquet(tmp_path / "rows.parquet", rows))), workers=1)
    assert found.doubtful == [("asked-1", SECOND)]
