"""No option that names a result replaces what the command reads."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.rows import reordering, write_parquet

from tpru_verl import cli
from tpru_verl.files import check_output

ROLLOUT = {"input": "Which?\nA. a\nB. b", "output": "<answer>A</answer>", "gts": "A", "score": 1.0, "step": 1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "data/train.parquet", [reordering(i) for i in range(2)])
    write_parquet(tmp_path / "other.parquet", [reordering(3)])
    (tmp_path / "data/manifest.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("data/train.parquet")
    os.link(tmp_path / "data/train.parquet", tmp_path / "hard.csv")
    (tmp_path / "test.csv").write_text("id,question,A,B,image\n1,Which?,a,b,x.png\n")
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts/1.jsonl").write_text(json.dumps(ROLLOUT) + "\n")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "data": {"x": 1.0}}) + "\n")
    (tmp_path / "episodes.jsonl").write_text("{}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "source"),
    [
        ("data validate data/train.parquet --report {}", "data/train.parquet"),
        ("data validate other.parquet --against data --report {}", "data/train.parquet"),
        ("data stats data@train --json {}", "link.json"),
        ("data stats data --json {}", "data/manifest.json"),
        ("data audit ./data --json {}", "hard.csv"),
        ("data view data/../data/train.parquet --out {}", "data/train.parquet"),
        ("eval predict m --rows test.csv --out {}", "test.csv"),
        ("eval predict m --rows ABSOLUTE/test.csv --out {}", "test.csv"),
        ("score rollouts --json {}", "rollouts/1.jsonl"),
        ("report metrics.jsonl --out {}", "metrics.jsonl"),
        ("report rollouts --out {}", "rollouts/1.jsonl"),
        ("build episodes.jsonl out --json {}", "episodes.jsonl"),
        ("build data out --json {}", "data/manifest.json"),
    ],
)
def test_a_source_is_not_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, source: str
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    arguments = [part.format(source).replace("ABSOLUTE", str(folder)) for part in command.split()]
    monkeypatch.setattr(sys, "argv", ["tpru", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    option = arguments[-2]
    assert f"{option} {source} " in str(stop.value.code)
    assert "give another file" in str(stop.value.code)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_files_are_replaced(folder: Path, tpru: Callable[..., tuple[int, str, str]]) -> None:
    for _ in range(2):
        assert tpru("stats", "data", "--json", "data/numbers.json", "--workers", 1)[0] == 0
    assert json.loads((folder / "data/numbers.json").read_text())
    check_output("--out", None, [folder])
    check_output("--out", folder / "new.csv", [folder, folder / "nowhere"])
