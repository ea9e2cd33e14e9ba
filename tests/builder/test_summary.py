"""What `tpru build` says at the end: rows by task, scene and split, what is missing and why, what is next."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from support.builds import Run
from support.frames import scenes, stills

from tpru_verl import cli
from tpru_verl.builder import tasks
from tpru_verl.builder.card import summary_of
from tpru_verl.builder.clips import Label
from tpru_verl.builder.drafts import look_alikes


def label(name: str, hashes: np.ndarray) -> Label:
    return Label(name, "scene", name, [], hashes, np.zeros(0, np.uint64))


def test_pictures_that_look_alike_in_two_splits_are_counted() -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (6, 32), dtype=np.uint8)
    near, far = train[2].copy(), train[3].copy()
    near[:4] ^= 0b11  # 8 of 256 bits
    far[:4] ^= 0b111  # 12
    test = np.stack([rng.integers(0, 256, 32, dtype=np.uint8), near, far])
    labels = {
        (0, 0): label("a", train),
        (0, 1): label("b", train[:1]),
        (1, 0): label("c", test),
        (1, 1): label("d", test[:1]),
    }
    splits = {(0, 0): "train", (0, 1): "train", (1, 0): "test", (1, 1): "test"}
    expected = {"pictures": 1, "of": 4, "clips": 1, "of_clips": 2}
    assert look_alikes(labels, splits) == {"test": expected}  # of splits as large as each other, train counts
    del labels[1, 1]
    assert look_alikes(labels, splits) == {"test": {**expected, "of": 3, "of_clips": 1}}
    assert look_alikes(labels, dict.fromkeys(splits, "train")) == {}


def test_the_end_of_a_build(tmp_path: Path, build: Run, capsys: pytest.CaptureFixture[str]) -> None:
    source = scenes(tmp_path / "frames", takes=8)
    # The same moments again at another size of file, in a scene of their own: no bytes in common.
    for take in range(2):
        stills(source / "again" / f"take{take}", take, 9)
    (source / "again" / "take0" / "notes.txt").write_text("x")
    stills(source / "short" / "one", 70, 2)
    manifest = build(source, "out", "--split", "train=0.6,test=0.4", "--json", tmp_path / "all.json")
    assert json.loads((tmp_path / "all.json").read_text()) == manifest
    out, _ = capsys.readouterr()
    rows = manifest["rows"]
    assert sum(rows["scenes"]["test"].values()) == rows["splits"]["test"]
    lines = [" ".join(line.replace("│", " ").split()) for line in out.splitlines()]
    for name in ("scene0", "scene1", "temporal_reordering"):
        part = "tasks" if name.startswith("temporal") else "scenes"
        numbers = [rows[part][split].get(name, 0) for split in ("test", "train")]
        assert f"{name} {numbers[0]} {numbers[1]} {sum(numbers)}" in lines
    advice = "too few frames (more frames are needed, or fewer --steps)"
    assert f"1 clip or file left out: {advice}, listed in {tmp_path}/out/dropped.json" in lines
    assert any(line.startswith("1 clip or file left out: unreadable") for line in lines)
    assert any(line.startswith("for more rows: more sources, --rows-per-clip 2") for line in lines)
    for split, counts in rows["wrong orders by Kendall distance"].items():
        shares = ", ".join(f"{apart}={n / sum(counts.values()):.2f}" for apart, n in counts.items())
        assert f"wrong orders by Kendall distance, {split}: {shares}" in lines
    if manifest["shared_pictures"]:
        assert any(line.startswith("shared pictures: ") for line in lines)


def test_a_split_of_one_scene_is_told(tmp_path: Path, build: Run, capsys: pytest.CaptureFixture[str]) -> None:
    source = scenes(tmp_path / "frames", takes=3)
    build(source, "out", "--split", "train=0.67,test=0.33", "--task", "temporal_reordering")
    said = "warning: --split: found the scene scene"
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith(said)]


@pytest.mark.parametrize("split", [[], ["--split", "train=0.5,test=0.5"]])
def test_the_commands_that_are_named_work(
    tmp_path: Path,
    build: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    split: list[str],
) -> None:
    manifest = build(scenes(tmp_path / "frames", takes=4), "my rows", *split)
    capsys.readouterr()
    manifest["shared_pictures"] = (
        {"test": {"pictures": 1, "of": 2, "clips": 1, "of_clips": 2}} if split else {}
    )
    lines = [line for line in summary_of(manifest, tmp_path / "my rows") if isinstance(line, str)]
    commands = [line.partition("tpru ")[2] for line in lines if "tpru " in line]
    assert len(commands) == (3 if split else 1)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["tpru", *shlex.split(command)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code in (0, None)
    assert len([*tmp_path.glob("*.html")]) == (2 if split else 1)


DESCRIBED = (
    "la recette, \u00e9tape A : couper, \u00e9tape B : cuire",
    "\uff21\uff0e\u5207\u83dc \uff22\uff0e\u7092\u83dc",
)


@pytest.mark.parametrize("text", DESCRIBED)
def test_a_description_that_lists_options_costs_no_row(tmp_path: Path, build: Run, text: str) -> None:
    source = scenes(tmp_path / "frames", takes=4)
    (source / "scene0/take0/description.txt").write_text(text, encoding="utf-8")
    assert build(source, "out", "--free-form")["rows"]["written"] == 12


def test_a_row_that_is_not_sound_is_told_and_the_rest_is_written(
    tmp_path: Path, build: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scenes(tmp_path / "frames", takes=4)
    (source / "scene0/take0/description.txt").write_text("A. cutting B. frying")
    monkeypatch.setattr(tasks, "plain_text", str)  # as for a mark that it does not know
    manifest = build(source, "out", "--free-form", "--negatives", 0)
    assert (manifest["rows"]["written"], manifest["failed_rows"]) == (11, {"not sound": 1})
    shown = capsys.readouterr()
    assert "left out: scene0/take0/temporal_reordering/0: answer: found '" in shown.err
    assert "1 row not made: not sound (the text lists options of its own)" in shown.out
