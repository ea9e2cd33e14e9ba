"""The gallery: whole and safe whatever the rows hold, a fair draw, and nothing hidden."""

import base64
import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from setuptools import Distribution

from tpru_verl.data.source.forms import Source
from tpru_verl.data.view import cut, write_gallery
from tpru_verl.demo.scenes import SCENES, make_rows, write_parquet
from tpru_verl.sample import IMAGE_TAG, NONE_OPTION, Sample, Task, parse_options

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;{{ 7 * 7 }}"


class Page(HTMLParser):
    """Words, tags and the rows of a page, each with its words, image addresses and right answers."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.open: list[tuple[str, str]] = []  # tag, class
        self.rows: list[dict[str, list[str]]] = []
        self.words = ""
        self.html = path.read_text()
        self.feed(self.html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.links += [given[name] for name in ("src", "srcset", "href", "data", "action") if name in given]
        self.handlers += [name for name in given if name.startswith("on")]
        if tag == "article":
            self.rows.append(
                {"words": [], "images": [], "answer": [], "alarm": [], "scene": [given["data-scene"]]}
            )
        if tag == "img":
            self.rows[-1]["images"].append(given["src"])
            self.rows[-1]["words"].append("IMG")
        if tag not in ("meta", "img", "input"):
            self.open.append((tag, given.get("class", "")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inside = {tag for tag, _ in self.open}
        if inside & {"script", "style"}:
            return
        self.words += data
        if "article" in inside:
            self.rows[-1]["words"] += data.split()
            for _, kind in self.open:
                if kind in ("answer", "alarm", "order"):
                    name = "alarm" if kind == "alarm" else "answer"
                    self.rows[-1][name] += data.split()

    def row(self, *words: str) -> dict[str, list[str]]:
        (found,) = [row for row in self.rows if set(words) <= set(row["words"])]
        return found


def gallery(folder: Path, rows: list[Sample], **options: int) -> Page:
    write_parquet(rows, folder / "rows.parquet")
    out = write_gallery(Source.open(str(folder / "rows.parquet")), folder / "page.html", workers=1, **options)
    return Page(out)


def jpeg(size: tuple[int, int], orientation: int = 1) -> bytes:
    """Red above, blue below, as stored."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (0, size[1] // 2, *size))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def opened(uri: str) -> Image.Image:
    assert uri.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.fixture(scope="module")
def rows() -> list[Sample]:
    return make_rows(60, seed=5, scenes=list(SCENES))


@pytest.fixture(scope="module")
def page(rows: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return gallery(tmp_path_factory.mktemp("gallery"), rows)


def test_page_needs_nothing_but_itself(page: Page) -> None:
    assert page.links
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not page.handlers
    assert page.tags["script"] == 1
    assert "link" not in page.tags
    assert "default-src 'none'" in page.html


def test_rows_are_whole_and_in_the_order_of_the_source(page: Page, rows: list[Sample]) -> None:
    assert "60 of 60 rows" in " ".join(page.words.split())
    assert len(page.rows) == len(rows)
    for number, (shown, row) in enumerate(zip(page.rows, rows, strict=True)):
        assert shown["scene"] == [row.scene]
        assert {row.row_id, row.scene, "rows.parquet,", "row", str(number)} <= set(shown["words"])
        assert len(shown["images"]) == len(row.images)
        assert shown["answer"][0 if row.task is Task.TEMPORAL_REORDERING else 2] == row.answer


def test_images_stand_at_their_tags(page: Page, rows: list[Sample]) -> None:
    for shown, row in zip(page.rows, rows, strict=True):
        wanted = row.problem.replace(IMAGE_TAG, " IMG ").replace(":", "").split()
        wanted = [re.sub(r"^([A-E])\.$", r"\1", word) for word in wanted]
        words = " ".join(shown["words"]).replace("right answer ", "").replace(" right answer", "").split()
        start = words.index(str(page.rows.index(shown))) + 1
        assert [word.replace(":", "") for word in words[start:]] == wanted


def test_images_stay_in_their_order(tmp_path: Path) -> None:
    colours = [(40 * i, 0, 255 - 40 * i) for i in range(7)]
    pictures = []
    for colour in colours:
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    (row,) = make_rows(1, seed=1, tasks=[Task.NEXT_FRAME_PREDICTION])
    (shown,) = gallery(tmp_path, [replace(row, images=tuple(pictures))]).rows
    for uri, colour in zip(shown["images"], colours, strict=True):
        found = opened(uri).getpixel((32, 32))
        assert isinstance(found, tuple)
        assert max(abs(a - b) for a, b in zip(found, colour, strict=True)) < 8


def test_what_rows_hold_cannot_become_markup(rows: list[Sample], tmp_path: Path) -> None:
    problem = rows[0].problem.replace("Reorder", f"{ATTACK} Reorder").replace(NONE_OPTION, ATTACK)
    bad = replace(rows[0], problem=problem, scene=ATTACK, source_id=ATTACK, row_id=ATTACK)
    also = replace(rows[1], problem=f"{ATTACK} <image>", answer=ATTACK, scene=ATTACK, row_id=ATTACK)
    page = gallery(tmp_path, [bad, also])
    assert page.tags["script"] == 1
    assert page.tags["img"] == len(bad.images)
    assert not page.handlers
    assert page.words.count("<script>alert(1)</script>") >= 6
    assert page.words.count("&amp;{{ 7 * 7 }}") >= 6
    assert [row["scene"] for row in page.rows] == [[ATTACK], [ATTACK]]


def test_limit_and_seed_decide_the_draw(rows: list[Sample], tmp_path: Path) -> None:
    pages = [gallery(tmp_path, rows, limit=9, seed=seed) for seed in (1, 1, 2)]
    assert pages[0].html == pages[1].html
    assert pages[0].rows != pages[2].rows
    assert all(len(page.rows) == 9 for page in pages)
    assert "9 of 60 rows drawn with seed 1" in " ".join(pages[0].words.split())
    numbers = [int(row["words"][row["words"].index("row") + 1]) for row in pages[0].rows]
    assert numbers == sorted(set(numbers))


def test_draw_does_not_depend_on_where_files_lie_or_who_reads(rows: list[Sample], tmp_path: Path) -> None:
    for folder in ("one", "two"):
        for part in range(2):
            write_parquet(rows[30 * part : 30 * part + 30], tmp_path / folder / f"train-{part}.parquet")
    pages = [
        write_gallery(
            Source.open(f"{tmp_path}/{folder}@train"), tmp_path / f"{folder}.html", limit=7, workers=n
        )
        for folder, n in (("one", 1), ("two", 2))
    ]
    one, two = (page.read_text() for page in pages)
    assert one.replace("one@train", "two@train") == two
    assert "train-1.parquet, row" in two
    assert str(tmp_path) not in two


def test_tasks_get_equal_shares_while_they_last(tmp_path: Path) -> None:
    many, few = Task.TEMPORAL_REORDERING, Task.PREVIOUS_FRAME_REVIEW
    rows = make_rows(50, seed=1, tasks=[many]) + make_rows(3, seed=2, tasks=[few])
    page = gallery(tmp_path, rows, limit=12)
    assert Counter(row["words"][0] for row in page.rows) == {"Temporal": 9, "Previous": 3}
    assert "Temporal reordering 9 of 50, Previous frame review 3 of 3." in " ".join(page.words.split())
    assert len(gallery(tmp_path, rows, limit=1).rows) == 1


def test_rotated_picture_is_shown_upright(rows: list[Sample], tmp_path: Path) -> None:
    # Orientation 6: turn by 90 degrees clockwise, so what is stored above comes to the right.
    turned = replace(rows[0], images=(jpeg((400, 200), 6), *rows[0].images[1:]))
    picture = opened(gallery(tmp_path, [turned], thumbnail=100).rows[0]["images"][0])
    assert picture.size == (100, 200)
    right, left = picture.getpixel((90, 100)), picture.getpixel((10, 100))
    assert isinstance(right, tuple)
    assert isinstance(left, tuple)
    assert right[0] > 200 > left[0]
    assert left[2] > 200 > right[2]


def test_pictures_are_made_smaller_but_never_larger(rows: list[Sample], tmp_path: Path) -> None:
    large = replace(rows[0], images=(jpeg((640, 480)), jpeg((30, 20)), *rows[0].images[2:]))
    page = gallery(tmp_path, [large], thumbnail=160)
    assert [opened(uri).size for uri in page.links] == [(320, 240), (30, 20), (56, 56), (56, 56)]
    assert 'width="160" height="120"' in page.html  # and twice as large on a click
    assert 'width="60" height="40"' in page.html  # on the page small ones are enlarged


def test_unusable_rows_are_shown_with_the_reason(rows: list[Sample], tmp_path: Path) -> None:
    row = rows[0]
    whole, pixels = row.images[0], row.images[0].index(b"IDAT") + 4
    garbled = whole[:pixels] + bytes(20) + whole[pixels + 20 :]  # header and end are as they should be
    broken = [
        replace(row, images=(b"<html>404</html>", *row.images[1:]), row_id="page"),
        replace(row, images=row.images[:2], row_id="few"),
        replace(row, answer="Z", row_id="letter"),
        replace(row, images=(garbled, *row.images[1:]), row_id="garbled"),
    ]
    page = gallery(tmp_path, [*broken, rows[1]])
    assert "4 of the rows shown are unusable" in page.words
    for name, reason in (
        ("page", "images[0]: found a web page that no image reader takes"),
        ("few", "images: found 2, expected 4"),
        ("letter", "answer: found 'Z', expected one of A, B, C, D, E"),
        ("garbled", "images: found one that can't be decoded"),
    ):
        shown = page.row(name)
        assert reason in " ".join(shown["alarm"])
        assert not shown["images"]
        assert "Reorder" in shown["words"]
    assert len(page.rows[4]["images"]) == 7
    assert not page.rows[4]["alarm"]


def test_a_row_of_other_types_is_shown_with_the_reason(tmp_path: Path) -> None:
    lines = [
        '{"problem": null, "answer": 3, "images": 5}',
        '{"problem": "\\ud800 a", "answer": "A", "images": []}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    page = Page(write_gallery(Source.open(str(tmp_path / "rows.jsonl")), tmp_path / "page.html"))
    assert [
        "images: found int, expected a list of images" in " ".join(row["alarm"]) for row in page.rows
    ] == [
        True,
        False,
    ]
    assert "Not recognised 2 of 2." in " ".join(page.words.split())


def test_order_without_options_is_the_right_answer(rows: list[Sample], tmp_path: Path) -> None:
    row = replace(rows[0], problem="Put these into the correct order: <image><image>", answer="2 1")
    page = gallery(tmp_path, [replace(row, images=row.images[:2])])
    assert " ".join(page.rows[0]["answer"]) == "Right answer: 2 1"


def test_options_between_other_text_and_tags() -> None:
    problem = (
        "Robot A. sees B. and <image>\n(A) one,\n  two; (B)<image>\n(C) None of the choices provided\nAnswer."
    )
    assert cut(problem) == (
        "Robot A. sees B. and <image>\n",
        {"A": "one,\n  two", "B": "<image>", "C": NONE_OPTION},
        "Answer.",
    )
    assert cut("What order? <image>") == ("What order? <image>", {}, "")


@given(
    st.lists(st.sampled_from(["A. ", "(B) ", "C:", "D", ",", ";", "\n", " ", "x", IMAGE_TAG, NONE_OPTION]))
)
def test_cutting_loses_no_tag_and_no_option(parts: list[str]) -> None:
    problem = "".join(parts)
    question, options, rest = cut(problem)
    whole = question + "".join(options.values()) + rest
    assert whole.count(IMAGE_TAG) == problem.count(IMAGE_TAG)
    found = {letter: " ".join(text.split()) for letter, text in options.items()}
    assert found == {letter: text.strip() for letter, text in parse_options(problem).items()}


@pytest.mark.parametrize(("name", "value"), [("limit", 0), ("thumbnail", 8)])
def test_what_cannot_be_shown_is_refused_in_one_line(
    name: str, value: int, rows: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: found {value}, expected .* or more$"):
        gallery(tmp_path, rows[:1], **{name: value})


def test_a_broken_file_leaves_the_page_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("an earlier page")
    (tmp_path / "rows.jsonl").write_text('{"problem": "a", "answer": "A", "images": []}\nno json\n')
    source = Source.open(str(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match=r"rows\.jsonl line 2: not readable as json"):
        write_gallery(source, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "an earlier page"
    assert not list(tmp_path.glob(".*"))


def test_template_is_packaged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    project = Distribution()
    project.parse_config_files([str(root / "pyproject.toml")])
    build = project.get_command_obj("build_py")
    build.ensure_finalized()
    files = {package: names for package, *_, names in getattr(build, "data_files")}  # noqa: B009
    assert any(name.endswith("gallery.html.jinja") for name in files["tpru_verl.data"])
