"""A build that failed or was ended goes on, and takes nothing from what has changed since."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.builds import Run
from support.frames import encoded, moment, scenes, stills
from support.results import read

from tpru_verl import prompts
from tpru_verl.builder import pipeline, stages


def failed(build: Run, source: Path, *options: object) -> str:
    with pytest.raises(SystemExit) as stop:
        build(source, "out", *options)
    return str(stop.value.code)


def listed(folder: Path, takes: int = 4) -> Path:
    """Episodes of one source, whose pictures are not there yet."""
    lines = [{"images": [f"{take}-{n}.png" for n in range(8)], "source_id": "s"} for take in range(takes)]
    folder.mkdir()
    (folder / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "all.jsonl"


def drawn(folder: Path, seed: int, takes: int = 4) -> set[bytes]:
    """The pictures of `listed`; those of any two seeds have one size in bytes and one time of change."""
    for take in range(takes):
        for n in range(8):
            data = encoded(moment(seed + take, n / 7).quantize(8).convert("RGB"), "BMP")
            (folder / f"{take}-{n}.png.new").write_bytes(data)
            os.utime(folder / f"{take}-{n}.png.new", (1e9, 1e9))
            (folder / f"{take}-{n}.png.new").replace(folder / f"{take}-{n}.png")
    return {path.read_bytes() for path in folder.glob("*.png")}


def test_names_that_were_refused_can_be_changed(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", takes=2)
    words = {f"{n + 1}.jpg": f"{name}.jpg" for n, name in enumerate(("apply", "boil", "cut", "dry", "eat"))}
    for folder in source.glob("*/*"):
        for old, new in words.items():
            (folder / old).rename(folder / new)
        for old in folder.glob("[0-9]*.jpg"):
            old.unlink()
    assert "whose order is ambiguous" in failed(build, source)
    for folder in source.glob("*/*"):
        for old, new in words.items():
            (folder / new).rename(folder / f"00{old}")
    assert build(source)["left_out"] == {}


def test_pictures_that_come_later_are_read(build: Run, tmp_path: Path) -> None:
    path = listed(tmp_path / "in")
    assert "there is no such file" in failed(build, path)
    drawn(path.parent, 0)
    assert build(path)["clips"] == 4


def test_pictures_of_episodes_that_were_replaced_are_read_anew(build: Run, tmp_path: Path) -> None:
    path = listed(tmp_path / "in")
    drawn(path.parent, 0)
    assert "found 1 group of rows" in failed(build, path, "--split", "train=0.5,test=0.5")
    pictures = drawn(path.parent, 10)
    build(path)
    assert pictures.issuperset(cell["bytes"] for row in read(tmp_path / "out") for cell in row["images"])


def test_a_template_that_was_edited_is_read_anew(
    build: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, template = scenes(tmp_path / "in", takes=2), tmp_path / "own.jinja"
    template.write_text("OLD {{ content }}")
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "card_of", None)
        with pytest.raises(TypeError):
            build(source, "out", "--template", template)
    template.write_text("NEW {{ content }}")
    prompts._load.cache_clear()  # as in a new process
    build(source, "out", "--template", template)
    assert {row["prompt"][0]["content"][:4] for row in read(tmp_path / "out")} == {"NEW "}


def test_an_item_that_failed_is_read_again(
    build: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scenes(tmp_path / "in", takes=2)
    (source / "notes.txt").write_text("x")

    def fails(*_: object, **__: object) -> Iterator[object]:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(stages, "clips_of", fails)
        assert "the disk is gone" in failed(build, source)
    manifest = build(source)
    assert (manifest["clips"], manifest["left_out"]) == (2, {"unreadable": 1})


def test_a_file_that_is_never_read_does_not_have_the_others_read_again(
    build: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stills(tmp_path / "in/scene/take", 0).parent.parent
    (source / "notes.txt").write_text("x")
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "card_of", None)
        with pytest.raises(TypeError):
            build(source)
    monkeypatch.setattr(stages, "clips_of", None)
    assert build(source)["clips"] == 1
