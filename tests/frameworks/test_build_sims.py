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
from support.rows import reordering, write_parquet

from tpru_verl.builder.filters import Filters
from tpru_verl.builder.pipeline import build
from tpru_verl.builder.sims import episodes_of, gui
from tpru_verl.builder.stages import BuildOptions
from tpru_verl.data.source.forms import Source
from tpru_verl.data.view import write_gallery


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


@pytest.mark.skipif(not any(map(shutil.which, gui.BROWSERS)), reason="no browser is installed")
def test_the_gallery_shows_a_picture_in_large(tmp_path: Path) -> None:
    """Here because Playwright is here: `tpru data view` in a browser."""
    rows = [reordering(seed) for seed in range(3)]
    source = Source.open(str(write_parquet(tmp_path / "rows.parquet", rows)))
    path = write_gallery(source, tmp_path / "rows.html", workers=1)
    page = gui._browser().new_page(viewport={"width": 1200, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)

    def large() -> str:
        return page.inner_text("#large p") if page.evaluate("document.getElementById('large').open") else ""

    try:
        page.goto(path.as_uri())
        small = page.locator("article figure img").nth(1)
        small.click()
        assert large() == "Image 2, 2 of 4"
        assert page.locator("#large img").bounding_box()["width"] > 5 * small.bounding_box()["width"]
        steps = {"ArrowRight": "Image 3, 3 of 4", "ArrowLeft": "Image 2, 2 of 4", "Escape": ""}
        for key, shown in steps.items():
            page.keyboard.press(key)
            assert large() == shown
        for key, shown in (("j", ""), ("e", "Image 1, 1 of 4"), ("ArrowLeft", "Image 1, 1 of 4"), ("e", "")):
            page.keyboard.press(key)
            assert large() == shown
        small.click()
        page.mouse.click(5, 5)
        assert large() == ""
        page.fill("#search", "cook")
        page.keyboard.press("e")  # a letter of the search
        assert (large(), errors) == ("", [])
    finally:
        page.close()


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
