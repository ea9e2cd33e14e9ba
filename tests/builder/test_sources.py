"""Folders, episodes and recordings as people have them: each file is read, listed or a system's own."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.builds import Run, provenance
from support.frames import encoded, moment, scenes, stills, video
from support.lerobot import in_columns, v2, v3
from support.results import contents, read

from tpru_verl.builder import stages
from tpru_verl.builder.lerobot import filled


def dropped(folder: Path) -> dict[str, str]:
    path = folder / "dropped.json"
    return {entry["id"]: entry["detail"] for entry in json.loads(path.read_text())} if path.exists() else {}


def frames_used(folder: Path) -> set[int]:
    return {frame["index"] for line in provenance(folder).values() for frame in line["frames"]}


def test_frames_are_in_the_order_of_their_times(build: Run, tmp_path: Path) -> None:
    for take in range(2):
        folder = tmp_path / f"in/scene/take{take}"
        folder.mkdir(parents=True)
        for place in range(8):
            (folder / f"t{place * 0.25:g}s.png").write_bytes(encoded(moment(take, place / 7), "PNG"))
    build(tmp_path / "in")
    by_bytes = {encoded(moment(take, place / 7), "PNG"): place for take in range(2) for place in range(8)}
    origin = provenance(tmp_path / "out")
    for row in read(tmp_path / "out"):
        for cell, frame in zip(row["images"], origin[row["extra_info"]["row_id"]]["frames"], strict=True):
            assert by_bytes[cell["bytes"]] == frame["index"]


def test_a_folder_with_ambiguous_names_is_listed_and_the_rest_is_built(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", takes=4)
    (source / "scene0/take0/1.jpg").rename(source / "scene0/take0/cover.jpg")
    manifest = build(source)
    assert (manifest["clips"], manifest["left_out"]) == (3, {"unreadable": 1})
    said = dropped(tmp_path / "out")["scene0/take0"]
    assert "'10.jpg' and 'cover.jpg', whose order is ambiguous" in said


@pytest.mark.parametrize(
    ("suffix", "format"),
    [
        ("jfif", "JPEG"),
        ("jpe", "JPEG"),
        ("gif", "GIF"),
        ("tif", "TIFF"),
        ("TIFF", "TIFF"),
        ("avif", "AVIF"),
        ("ppm", "PPM"),
        ("jp2", "JPEG2000"),
        ("qoi", "QOI"),
    ],
)
def test_a_picture_of_any_usual_format_is_a_frame(
    build: Run, tmp_path: Path, suffix: str, format: str
) -> None:
    for take in range(2):
        stills(tmp_path / f"in/scene/take{take}", take, frames=6)
        path = tmp_path / f"in/scene/take{take}/3.jpg"
        path.unlink()
        path.with_suffix(f".{suffix}").write_bytes(encoded(moment(take, 2 / 5), format))
    manifest = build(tmp_path / "in", "out", "--rows-per-clip", 6)
    assert manifest["left_out"] == {}
    assert manifest["frames"]["kept"] == 12
    assert 2 in frames_used(tmp_path / "out")


def test_a_tiff_loses_nothing(build: Run, tmp_path: Path) -> None:
    for place in range(6):
        path = tmp_path / f"in/scene/take/{place}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(moment(0, place / 5), "TIFF"))
    build(tmp_path / "in")
    pictures = {moment(0, place / 5).tobytes() for place in range(6)}
    for row in read(tmp_path / "out"):
        for cell in row["images"]:
            assert Image.open(io.BytesIO(cell["bytes"])).convert("RGB").tobytes() in pictures


def pages(format: str) -> bytes:
    return encoded(moment(0, 0.1), format, save_all=True, append_images=[moment(0, 0.9)])


UNREADABLE: dict[str, tuple[str, bytes, str]] = {
    "another format": ("3.heic", b"\0\0\0 ftypheic", "found a file that ends in .heic"),
    "a raw picture": ("3.cr2", b"II*\0", "found a file that ends in .cr2"),
    "no suffix": ("3", encoded(moment(0, 0.3)), "found a file that has no suffix"),
    "a text": ("labels.json", b"{}", "found a file that ends in .json"),
    "an animation": ("3.gif", pages("GIF"), "(3.gif)"),
    "pages": (
        "3.tif",
        pages("TIFF"),
        "2 pictures in one",
    ),
    "print colours": ("3.tif", encoded(moment(0, 0.3).convert("CMYK"), "TIFF"), "found TIFF of mode CMYK"),
    "16 bits": ("3.tif", encoded(moment(0, 0.3).convert("I;16"), "TIFF"), "16-bit grey"),
    "a cut TIFF": ("3.tif", encoded(moment(0, 0.3), "TIFF")[:-9000], "(3.tif)"),
    "no picture": ("3.avif", b"nothing", "(3.avif): found bytes that no image reader takes"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_cannot_be_read_is_named(build: Run, tmp_path: Path, kind: str) -> None:
    name, data, said = UNREADABLE[kind]
    source = scenes(tmp_path / "in", takes=4)
    (source / "scene0/take0/3.jpg").unlink()
    (source / f"scene0/take0/{name}").write_bytes(data)
    manifest = build(source)  # which checks that the exit code is 3
    assert manifest["left_out"] == {"unreadable": 1}
    ((entry, detail),) = dropped(tmp_path / "out").items()
    assert entry.startswith("scene0/take0")
    assert name in entry + detail
    assert said in detail


def test_links_and_files_that_lead_nowhere_are_named(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", takes=4)
    stills(tmp_path / "elsewhere", 9)
    (source / "scene0/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (source / "scene0/gone.mp4").symlink_to(source / "nothing.mp4")
    (source / "scene0/round.mp4").symlink_to(source / "scene0/round.mp4")
    os.mkfifo(source / "scene0/pipe.csv")
    assert build(source)["left_out"] == {"unreadable": 4}
    assert set(dropped(tmp_path / "out")) == {
        f"scene0/{name}" for name in ("linked", "gone.mp4", "round.mp4", "pipe.csv")
    }


def test_a_folder_with_the_name_of_a_file_is_no_frame(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", takes=2)
    stills(source / "scene0/take0/99.jpg", 9)
    manifest = build(source)
    assert (manifest["clips"], manifest["left_out"]) == (3, {})


SYSTEM_FILES = (
    *("._1.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"),
    *("@eaDir/1.jpg", "__MACOSX/._1.jpg", ".x/1.mp4"),
)


@pytest.mark.parametrize("place", ["", "scene0", "scene0/take0"])
def test_what_systems_leave_behind_is_no_part_of_a_source(build: Run, tmp_path: Path, place: str) -> None:
    build(scenes(tmp_path / "in", takes=4), "clean")
    for name in SYSTEM_FILES:
        path = tmp_path / "in" / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\x05\x16\x07 nothing to see")
    assert build(tmp_path / "in")["left_out"] == {}
    assert read(tmp_path / "out") == read(tmp_path / "clean")


def test_what_systems_leave_behind_is_no_part_of_a_recording(build: Run, tmp_path: Path) -> None:
    root = v3(tmp_path / "robot")
    (root / "meta/episodes/chunk-000/._file-000.parquet").write_bytes(b"\0\x05\x16\x07")
    assert build(root, "out", "--every", "0.2")["clips"] == 2


def about(source: Path, take: int, text: bytes) -> None:
    (source / f"scene{take % 2}/take{take}/description.txt").write_bytes(text)


def test_a_description_is_read_from_inside_the_source_alone(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", takes=4)
    (tmp_path / "secret").write_text("the secret word")
    (source / "scene0/take0/description.txt").symlink_to(tmp_path / "secret")
    (source / "scene1/take1/description.txt").symlink_to(tmp_path / "in/scene1/take3/../take3")
    about(source, 2, b"\xff\xfe no text")
    about(source, 3, b"\xef\xbb\xbfa square that travels")
    manifest = build(source)
    assert manifest["clips"] == 1
    assert "a link that leaves" in dropped(tmp_path / "out")["scene0/take0"]
    assert "not UTF-8" in dropped(tmp_path / "out")["scene0/take2"]
    problems = [row["problem"] for row in read(tmp_path / "out")]
    assert all("These photos show a square that travels." in problem for problem in problems)
    assert "secret" not in json.dumps(dropped(tmp_path / "out")).replace(str(tmp_path / "secret"), "")


def test_a_description_of_many_gigabytes_is_refused_unread(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", takes=2)
    about(source, 0, b"")
    os.truncate(source / "scene0/take0/description.txt", 2**40)
    assert build(source)["clips"] == 1
    assert "expected a sentence" in dropped(tmp_path / "out")["scene0/take0"]


ERRORS = (OSError("disk"), RuntimeError("loop"), RecursionError("deep"), MemoryError(), TypeError("null"))


@pytest.mark.parametrize("error", [*ERRORS, KeyError("x")])
def test_any_error_of_an_item_costs_that_item_alone(
    build: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    whole = stages.clips_of

    def broken(item: Any, *given: Any, **more: Any):
        if item.id.endswith("take1"):
            raise error
        return whole(item, *given, **more)

    monkeypatch.setattr(stages, "clips_of", broken)
    manifest = build(scenes(tmp_path / "in", takes=4))
    assert (manifest["clips"], manifest["left_out"]) == (3, {"unreadable": 1})
    detail = dropped(tmp_path / "out")["scene1/take1"]
    assert type(error).__name__ in detail or isinstance(error, OSError)
    assert "\n" not in detail


@pytest.mark.parametrize("kind", ["folder", "file", "note"])
def test_a_name_that_is_no_text_costs_its_item_alone(build: Run, tmp_path: Path, kind: str) -> None:
    """A file name is bytes, such as Latin-1 of an old archive."""
    source = scenes(tmp_path / "in", takes=4)
    name = b"caf\xe9"
    here, there = {
        "folder": (b"scene0/take0", b"scene0/" + name),
        "file": (b"scene0/take0/3.jpg", b"scene0/take0/" + name + b".jpg"),
        "note": (b"scene0/take0/10.jpg", b"scene0/take0/" + name + b".txt"),
    }[kind]
    (source / os.fsdecode(here)).rename(source / os.fsdecode(there))
    manifest = build(source)
    assert (manifest["clips"], manifest["left_out"]) == (4 if kind == "note" else 3, {"unreadable": 1})
    assert "caf\\udce9" in (tmp_path / "out/dropped.json").read_text().replace("\\\\", "\\")


@pytest.mark.parametrize("field", ["id", "scene", "source_id", "text", "texts"])
def test_half_a_character_costs_its_episode_alone(build: Run, tmp_path: Path, field: str) -> None:
    texts = [f"step {n}" for n in range(10)]
    lines: list[dict[str, Any]] = []
    for take in range(3):
        names = [f"take{take}/{n + 1}.jpg" for n in range(10)]
        stills(tmp_path / f"in/take{take}", take)
        lines.append({"id": f"e{take}", "images": names, "texts": texts})
    lines[1] |= {field: ["\ud83d", *texts[1:]] if field == "texts" else "half \ud83d"}
    path = tmp_path / "in/all.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = build(path)
    assert (manifest["clips"], manifest["left_out"]) == (2, {"unreadable": 1})
    ((_, detail),) = dropped(tmp_path / "out").items()
    assert "expected text that UTF-8 can hold" in detail


@pytest.mark.parametrize("place", [".", "..", "frames/..", "./1.mp4", "1.mp4"])
def test_a_source_gives_the_same_rows_by_any_path(
    build: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    source = stills(tmp_path / "in", 0)
    stills(source / "frames", 1)
    video(source / "1.mp4", [i / 25 for i in range(100)])
    build(source / place if place.endswith("mp4") else source, "whole")
    monkeypatch.chdir(source / "frames" if place == ".." else source)
    build(place)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# Recordings


def info(**changes: object) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "meta/info.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def second_episode(**changes: object) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "meta/episodes.jsonl"
        first, second = map(json.loads, path.read_text().splitlines())
        path.write_text(json.dumps(first) + "\n" + json.dumps({**second, **changes}) + "\n")

    return change


def cut(root: Path) -> None:
    path = root / "meta/episodes.jsonl"
    path.write_text(path.read_text()[:-20])


def content(name: str, text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / "meta" / name).write_text(text)

    return change


BAD_RECORDINGS: dict[str, tuple[Callable[[Path], None], str]] = {
    **{f"fps {fps!r}": (info(fps=fps), "fps: found") for fps in ("30", None, float("inf"), [1], True, 0, -1)},
    "no fields": (content("info.json", "{}"), "found no 'codebase_version'"),
    "a list": (content("info.json", "[]"), "not readable as a LeRobot"),
    "a cut file": (content("info.json", '{"fps": 3'), "not readable as a LeRobot"),
    "deep": (content("info.json", "[" * 100_000), "recursion"),
    "no features": (info(features=None), "not readable as a LeRobot"),
    "no episodes": (content("episodes.jsonl", ""), "found no episodes in"),
}


@pytest.mark.parametrize("kind", BAD_RECORDINGS)
def test_metadata_that_is_wrong_is_one_line(build: Run, tmp_path: Path, kind: str) -> None:
    change, said = BAD_RECORDINGS[kind]
    root = v2(tmp_path / "robot")
    change(root)
    with pytest.raises(SystemExit) as stop:
        build(root)
    assert said in str(stop.value.code)
    assert "robot: not readable as a LeRobot data set" in str(stop.value.code)
    assert "\n" not in str(stop.value.code)


def test_a_recording_that_was_interrupted_is_one_line(build: Run, tmp_path: Path) -> None:
    root = v3(tmp_path / "robot")
    (root / "meta/episodes/chunk-000/file-000.parquet").unlink()
    with pytest.raises(SystemExit, match="found no episodes in meta/episodes; was the recording interrupted"):
        build(root)


BAD_EPISODES: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"episode_index {value!r}": (second_episode(episode_index=value), "episode_index: found")
        for value in (None, "1", 1.5, [1], float("inf"), -1, True, 10**400)
    },
    "tasks": (second_episode(tasks="pick it up"), "tasks: found 'pick it up', expected a list of texts"),
    "a line that is cut": (cut, "not readable as json"),
}


@pytest.mark.parametrize("kind", BAD_EPISODES)
def test_an_episode_with_wrong_metadata_is_listed_and_the_rest_is_built(
    build: Run, tmp_path: Path, kind: str
) -> None:
    change, said = BAD_EPISODES[kind]
    root = v2(tmp_path / "robot")
    change(root)
    manifest = build(root, "out", "--every", "0.2")
    assert (manifest["clips"], manifest["left_out"]) == (1, {"unreadable": 1})
    assert said in dropped(tmp_path / "out")["robot/meta/episodes.jsonl row 2"]


@pytest.mark.parametrize("size", [0, None, "1000", float("inf"), [1]])
def test_a_wrong_number_of_episodes_a_folder_is_named(build: Run, tmp_path: Path, size: object) -> None:
    root = v2(tmp_path / "robot")
    info(chunks_size=size)(root)
    with pytest.raises(SystemExit, match="chunks_size: found"):
        build(root)


@pytest.mark.parametrize("numbers", [[0, None], ["0", "1"], [1, 0], [0.0, 1.0], [0, 0]])
def test_an_episode_without_rising_frame_numbers_is_listed(
    build: Run, tmp_path: Path, numbers: list[Any]
) -> None:
    root = in_columns(tmp_path / "robot")
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    frames = pa.array([*numbers, *[None] * (len(table) - len(numbers))])
    pq.write_table(table.set_column(1, "frame_index", frames), path)
    with pytest.raises(SystemExit, match=r"episode-000000: (frame_index: found|found frame)"):
        build(root, "out", "--every", "0.2")


def test_a_template_is_filled_like_a_format() -> None:
    fields = {"video_key": "top.left", "episode_index": 12, "chunk_index": 0}
    for template in ("a/{episode_index}.mp4", "{chunk_index:03d}/{video_key}/{episode_index:06d}", "x"):
        assert filled(template, fields) == template.format(**fields)


@pytest.mark.parametrize(
    "template",
    [
        "{episode_index:>4000000000}",
        "{episode_index:4000000000d}",
        "{episode_index.__class__}",
        "{episode_index[0]}",
        "{video_key:3d}",
        "{other}",
        "{episode_index!r}",
        "{0}",
        "{",
        "{episode_index:{episode_index}d}",
        None,
        ["x"],
    ],
)
def test_a_template_with_anything_else_is_refused(template: object) -> None:
    with pytest.raises(ValueError, match="found"):
        filled(template, {"video_key": "top", "episode_index": 12})


@pytest.mark.parametrize("path", ["/etc/passwd", "../{episode_index}.mp4", "{video_key}/../../../x.mp4"])
def test_a_template_does_not_lead_out_of_the_folder(build: Run, tmp_path: Path, path: str) -> None:
    root = v2(tmp_path / "robot")
    info(video_path=path)(root)
    with pytest.raises(SystemExit, match="expected one inside"):
        build(root)
