"""MiniGrid's bot plays episodes, and the builder makes rows of them."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tpru_verl.build.filters import Filters
from tpru_verl.build.pipeline import build
from tpru_verl.build.sims import episodes_of
from tpru_verl.build.stages import Settings


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
    settings = Settings(filters=Filters(min_change=0.001), episodes=12)
    manifest = build("sim:minigrid", tmp_path / "out", settings, audit=False, workers=1)
    (path,) = (tmp_path / "out").rglob("*.parquet")
    rows = pq.read_table(path, columns=["problem", "answer"]).to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "out/provenance.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines) > 12
    assert all("These photos show how an agent is to " in row["problem"] for row in rows)
    assert {"mismatch", "missing answer", ""} == {line["negative"] for line in lines}
    assert str(manifest["source"]).count("sim:minigrid")
