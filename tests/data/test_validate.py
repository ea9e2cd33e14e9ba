"""`tpru data validate`: each kind of bad row is one line with its place, and the exit code says so."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from support.commands import Tpru
from support.rows import Row, picture, reordering, write_jsonl, write_parquet

from tpru_verl.data.images import problem_of, read_header, thumbnail, upright
from tpru_verl.data.likeness import bits, perceptual_hash
from tpru_verl.data.source.forms import Source
from tpru_verl.data.validate import Report, validate


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gif(frames: int) -> bytes:
    pictures = [Image.open(io.BytesIO(picture(i))).convert("P") for i in range(frames)]
    return encode(pictures[0], "GIF", save_all=True, append_images=pictures[1:])


def webp(frames: int) -> bytes:
    pictures = [Image.open(io.BytesIO(picture(i))) for i in range(frames)]
    return encode(pictures[0], "WEBP", save_all=True, append_images=pictures[1:])


def palette_with_transparency() -> bytes:
    image = Image.open(io.BytesIO(picture())).convert("P")
    return encode(image, "PNG", transparency=0)


def bomb(side: int) -> bytes:
    """A picture of side x side pixels by its header, and tiny as a file."""
    return encode(Image.new("1", (side, side)), "PNG")


PLAIN = Image.open(io.BytesIO(picture()))
JPEG = picture(1, (640, 480), "JPEG")
BAD_IMAGES = {
    "zero bytes": (b"", "found 0 bytes, expected an image"),
    "a web page": (b"<!DOCTYPE html><html>gone</html>", "found a web page that no image reader takes"),
    "noise": (b"\x00\x01" * 50, "found bytes that no image reader takes (100 bytes)"),
    "1 x 1": (picture(size=(1, 1)), "found 1 x 1 pixels, expected sides of at least 4"),
    "30,000 x 30,000": (bomb(30_000), "found over 67108864 pixels, expected at most that"),
    "a bomb": (bomb(12_000), "found 12000 x 12000 pixels, expected at most 67108864 in all"),
    "a ribbon": (picture(size=(2000, 8)), "found 2000 x 8 pixels, expected sides within 1 : 200"),
    "CMYK": (encode(PLAIN.convert("CMYK"), "JPEG"), "found print colours (CMYK), expected 8 bits of grey or"),
    "16 bits": (
        encode(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)), "PNG"),
        "found 16-bit grey (I;16), expected 8 bits",
    ),
    "palette": (palette_with_transparency(), "found a palette with transparency, expected an opaque"),
    "GIF": (gif(3), "found an animation of 3 frames, expected one picture"),
    "WebP": (webp(2), "found an animation of 2 frames, expected one picture"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "found an image that can't be decoded"),
    "truncated PNG": (picture()[:-30], "found an image that can't be decoded"),
    "truncated WebP": (encode(PLAIN, "WEBP")[:-30], "found bytes that no image reader takes"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_one_line_and_exit_code_1(tpru: Tpru, tmp_path: Path, kind: str) -> None:
    data, message = BAD_IMAGES[kind]
    good = [picture(i) for i in range(3)]
    path = write_parquet(tmp_path / "a.parquet", [reordering(1), reordering(2, images=[*good, data])])
    code, _, error = tpru("validate", path)
    assert code == 1
    first, second = error.splitlines()
    assert first.endswith("a.parquet: 1 of 2 rows are unusable") or "1 of 2" in first
    assert f"a.parquet row 1: images[3]: {message}" in second


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_images_of_every_format_pass_deep_or_not(format: str, mode: str) -> None:
    data = encode(PLAIN.convert(mode), format)
    assert problem_of(data) is None
    assert problem_of(data, deep=True) is None


def test_only_deep_finds_what_the_header_and_the_end_hide() -> None:
    data = bytearray(picture(4, (200, 200)))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    assert problem_of(bytes(data)) is None
    assert "can't be decoded" in str(problem_of(bytes(data), deep=True))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_bytes_raise(noise: bytes, at: int) -> None:
    for data in (noise, JPEG[:at] + noise, picture()[:at] + noise):
        assert problem_of(data, deep=True) is not None or read_header(data)


BAD_ROWS: dict[str, tuple[Row, str]] = {
    "too few images": ({"images": [picture()]}, "images: found 1, expected 4, one for each <image> tag"),
    "an answer that is no option": ({"answer": "F"}, "answer: found 'F', expected one of A, B, C, D, E"),
    "no answer": ({"answer": None}, "answer: found None, expected an option letter or an order"),
    "NaN": ({"answer": float("nan")}, "answer: found nan, expected an option letter or an order"),
    "a list": ({"answer": ["B"]}, "answer: found ['B'], expected an option letter or an order"),
    "no question": ({"problem": " "}, "problem: found ' ', expected text with <image> tags"),
    "images that are none": ({"images": 7}, "images: found int, expected a list of images"),
    "an unknown task": ({"task": "juggling"}, "task: found 'juggling', expected one of temporal_reordering"),
    "options twice": (
        {"problem": reordering()["problem"].replace("4 3 2 1", "3 1 4 2")},
        "problem: found the option '3 1 4 2' 2 times, expected distinct options",
    ),
    "a missing file": ({"images": ["no.png"] * 4}, "images: found 'no.png', but there is no such file"),
    "a path outside": ({"images": ["../../etc/passwd"] * 4}, "images: found '../../etc/passwd', expected a"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named_by_file_row_and_field(tpru: Tpru, tmp_path: Path, kind: str) -> None:
    changes, message = BAD_ROWS[kind]
    rows = []
    for row in (reordering(1), {**reordering(2), **changes}):
        cells = row["images"]
        if isinstance(cells, list) and isinstance(cells[0], bytes):
            names = [f"{abs(hash(data))}.png" for data in cells]
            for name, data in zip(names, cells, strict=True):
                (tmp_path / name).write_bytes(data)
            row = {**row, "images": names}
        rows.append(row)
    code, _, error = tpru("validate", write_jsonl(tmp_path / "a.jsonl", rows))
    assert code == 1
    assert f"a.jsonl row 1: {message}" in error


def test_zero_rows_and_missing_columns(tpru: Tpru, tmp_path: Path) -> None:
    empty = write_parquet(tmp_path / "empty.parquet", [reordering()][:1], 1)
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(empty).slice(0, 0), empty)
    assert tpru("validate", empty)[::2] == (1, f"tpru: {empty}: found 0 rows, expected at least 1")
    lacking = write_parquet(tmp_path / "lacking.parquet", [{"problem": "x", "images": [picture()]}])
    assert "found columns problem, images; say with --answer-key" in tpru("validate", lacking)[2]
    assert "no such file or folder" in tpru("validate", tmp_path / "nothing.parquet")[2]


def report_on(path: Path, **options: object) -> Report:
    return validate(Source.open(str(path)), **options)  # type: ignore[arg-type]


def test_duplicates_and_repeated_images_are_warnings(tpru: Tpru, tmp_path: Path) -> None:
    twice = reordering(2, images=[picture(0), picture(0), picture(1), picture(2)])
    path = write_parquet(tmp_path / "a.parquet", [reordering(1), twice, reordering(1)], row_group_size=1)
    report = report_on(path)
    assert not report.unusable
    assert [(f.row, f.field) for f in report.findings] == [(1, "images"), (2, "row")]
    assert report.findings[1].found == f"the question and images of {path} row 0"
    code, out, _ = tpru("validate", path)
    assert code == 0
    assert "3 rows, all usable, 2 warnings" in out


def test_rows_shared_with_another_source_are_found_by_what_they_show(tpru: Tpru, tmp_path: Path) -> None:
    shown = reordering(1)
    smaller = [
        encode(Image.open(io.BytesIO(data)).resize((80, 60)), "JPEG", quality=70) for data in shown["images"]
    ]
    other = reordering(7, problem=shown["problem"].replace("cooking", "a meal"), images=smaller)
    test = write_parquet(tmp_path / "test.parquet", [other, reordering(8)])
    partly = reordering(3, images=[picture(300), picture(301), picture(302), picture(100)])
    train = write_parquet(tmp_path / "train.parquet", [reordering(2), shown, partly])
    report = report_on(train, against=Source.open(str(test)))
    assert [(f.severity, f.row) for f in report.findings] == [("error", 1), ("warning", 2)]
    assert report.findings[0].found.startswith(f"pictures that look like all of its own in {test} row 0")
    assert report.findings[1].found.startswith("1 of 4 images that look like images in rows of")
    code, _, error = tpru("validate", train, "--against", test)
    assert code == 1
    assert "row 1: images: found pictures that look like all of its own in" in error
    assert "--drop-invalid" in error
    assert "tpru build --against" in error
    same = write_parquet(tmp_path / "same.parquet", [shown])
    assert "row 1: images: found all its images in" in tpru("validate", train, "--against", same)[2]


@pytest.mark.parametrize("changes", [{"answer": ""}, {"answer": "Z"}, {"problem": "What is this?"}])
def test_rows_shared_with_unsound_rows_of_another_source_are_found(
    tpru: Tpru, tmp_path: Path, changes: dict[str, str]
) -> None:
    test = write_parquet(tmp_path / "test.parquet", [{**reordering(1), **changes}])
    train = write_parquet(tmp_path / "train.parquet", [reordering(2), reordering(1)])
    assert "row 1: images: found all its images in" in tpru("validate", train, "--against", test)[2]
    prepared = tpru("prepare", train, tmp_path / "out", "--against", test)
    assert prepared[0] == 1
    assert "row 1: images: found all its images in" in prepared[2]


def test_the_report_has_one_entry_a_finding(tpru: Tpru, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [reordering(1), reordering(2, answer="Z")])
    tpru("validate", path, "--report", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["rows"], report["unusable_rows"]) == (2, 1)
    (finding,) = report["findings"]
    assert finding == {
        "severity": "error",
        "file": str(path),
        "row": 1,
        "id": "a.parquet:1",
        "field": "answer",
        "found": "'Z'",
        "expected": "one of A, B, C, D, E",
    }


def test_many_processes_find_the_same_in_the_same_order(tmp_path: Path) -> None:
    rows = [reordering(i % 7, answer="Z" if i % 5 == 0 else "B") for i in range(20)]
    path = write_parquet(tmp_path / "a.parquet", rows, row_group_size=3)
    alone, together = report_on(path, workers=1), report_on(path, workers=2)
    assert alone.findings == together.findings
    assert alone.tasks == together.tasks


def test_exif_orientation_is_noted_and_respected(tmp_path: Path) -> None:
    image = Image.open(io.BytesIO(picture(5, (40, 20)))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(image, "JPEG", exif=exif.tobytes())
    header = read_header(data)
    assert (header.width, header.height, header.upright) == (40, 20, (20, 40))
    assert thumbnail(data, 40).size == (20, 40)
    path = write_parquet(tmp_path / "a.parquet", [reordering(images=[data, *map(picture, range(3))])])
    (finding,) = report_on(path).findings
    assert (finding.severity, finding.field) == ("warning", "images[0]")
    assert finding.found == "EXIF orientation 6"


def half_transparent(hidden: int) -> bytes:
    """A circle on transparent ground; the hidden colour of the ground is a grey of `hidden`."""
    image = Image.new("RGBA", (64, 64), (hidden, hidden, hidden, 0))
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), (200, 30, 30, 255))
    return encode(image, "PNG")


def test_transparent_ground_is_white_everywhere_as_in_training() -> None:
    to_rgb = pytest.importorskip("qwen_vl_utils.vision_process").to_rgb
    dark, light = half_transparent(0), half_transparent(255)
    assert upright(dark).tobytes() == to_rgb(Image.open(io.BytesIO(dark))).tobytes()
    assert thumbnail(dark, 64).tobytes() == upright(dark).tobytes() == upright(light).tobytes()
    assert thumbnail(dark, 32).getpixel((0, 0)) == (255, 255, 255)
    assert perceptual_hash(dark) == perceptual_hash(light)


def test_perceptual_hashes_know_a_picture_again_and_tell_others_apart() -> None:
    hashes = np.array([perceptual_hash(picture(i)) for i in range(20)])
    again = np.array([perceptual_hash(picture(i, (200, 150), "JPEG", quality=60)) for i in range(20)])
    distance = bits(np.bitwise_xor(hashes[:, None], again, dtype=np.uint64))
    assert distance.diagonal().max() <= 4
    assert np.delete(distance.ravel(), np.arange(20) * 21).min() > 8


def test_a_picture_in_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [f"{i}.png" for i in range(4)]
    for i, name in enumerate(files):
        (tmp_path / name).write_bytes(picture(i))
    path = write_jsonl(tmp_path / "a.jsonl", [{**reordering(0), "images": files}])
    read: list[str] = []
    read_bytes = Path.read_bytes

    def counted(self: Path) -> bytes:
        read.append(self.name)
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", counted)
    assert report_on(path, workers=1).rows == 1
    assert sorted(read) == files
