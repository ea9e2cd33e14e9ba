"""The simulators play episodes, and the builder makes rows of them."""

import json
import os
import shutil
import subprocess
import sys
from ctypes.util import find_library
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tpru_verl.builder.filters import Filters
from tpru_verl.builder.pipeline import build
from tpru_verl.builder.sims import episodes_of, gui
from tpru_verl.builder.stages import BuildOptions


def test_an_episode_is_the_same_each_time_and_says_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    item = list(episodes_of("minigrid", 6, seed=1))[2]
    once, again = list(item.frames()), list(item.frames())
    assert [frame.data for frame in once] == [frame.data for frame in again]
    assert len(once) > 4
    assert "next to" in once[0].about
    assert once[0].text.startswith("go next to the ")
    assert once[-1].text == "done"
    assert capsys.readouterr().out == "", "levels print what they reject"


def test_missions_become_rows_and_mismatches(tmp_path: Path) -> None:
    settings = BuildOptions(filters=Filters(min_change=0.001), episodes=12)
    manifest = build("sim:minigrid", tmp_path / "out", settings, audit=False, workers=1)
    (path,) = (tmp_path / "out").rglob("*.parquet")
    rows = pq.read_table(path, columns=["problem", "answer"]).to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "out/provenance.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines) > 12
    assert all("These photos show how an agent is to " in row["problem"] for row in rows)
    assert {"mismatch", "missing answer", ""} == {line["negative"] for line in lines}
    assert str(manifest["source"]).count("sim:minigrid")


def test_an_app_is_played_in_a_browser_to_its_end() -> None:
    items = list(episodes_of("gui", 3, seed=1))
    if not any(map(shutil.which, gui.BROWSERS)):
        with pytest.raises(ValueError, match="found no browser, expected one of chromium"):
            list(items[0].frames())
        return
    for item in items:
        frames = list(item.frames())
        assert len(frames) > 4, item.kind
        assert all(one.data != two.data for one, two in pairwise(frames)), item.kind
        assert frames[0].text == "the list is open"
        assert frames[-1].text == "tap Confirm"
        assert len({frame.about for frame in frames}) == 1
    assert [frame.data for frame in items[0].frames()] == [frame.data for frame in items[0].frames()]


def test_an_arm_solves_its_task_and_says_how_it_moves() -> None:
    if not find_library("EGL"):
        with pytest.raises(ValueError, match="expected EGL"):
            list(episodes_of("metaworld", 1, seed=1))
        return
    item = list(episodes_of("metaworld", 19, seed=1))[6]
    assert item.kind == "door-open"
    once, again = list(item.frames()), list(item.frames())
    assert [frame.data for frame in once] == [frame.data for frame in again]
    assert len(once) > 10
    assert "door" in once[0].about
    assert any(frame.text.startswith("the hand moves") for frame in once)


def test_without_egl_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "mujoco.py").write_text("None.eglQueryString")  # what PyOpenGL does without the library
    code = "from tpru_verl.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "build", "sim:metaworld", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "MUJOCO_GL": "egl"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("tpru: sim:metaworld: MuJoCo found no egl, expected EGL (Debian: libegl1")
