"""Exports of our rows and verdicts to other harnesses; `frameworks/` runs the harnesses themselves."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from support.harnesses import export, write_sources

from tpru_verl.data.tokens.pixels import Bounds
from tpru_verl.eval.benchmarks import BENCHMARKS
from tpru_verl.eval.harnesses import rows as harness_rows
from tpru_verl.eval.harnesses.vlmevalkit import dataset_class


class TestExport:
    def test_rows_say_what_our_own_run_would(self, tmp_path: Path) -> None:
        source = str(write_sources(tmp_path)["tpru-test"])
        rows = [*harness_rows.rows_of(BENCHMARKS["tpru-test"], source, "tpru", Bounds())]
        assert len(rows) == 9
        assert [bool(row.failed) for row in rows] == [False] * 8 + [True]
        assert "images[1]: found an image that can't be decoded" in rows[-1].failed
        assert not harness_rows.verdict_of(vars(rows[-1]), "<answer>B</answer>").correct
        assert harness_rows.verdict_of(vars(rows[0]), "<think>C</think><answer>3 1 4 2</answer>").correct
        assert [type(part) for part in rows[0].parts()].count(bytes) == 4

    def test_an_unknown_harness(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="harness: found 'x', expected lmms-eval or vlmevalkit"):
            harness_rows.export("x", tmp_path, [], "tpru", Bounds())

    def test_names_differ_from_those_of_the_harnesses(self) -> None:
        assert harness_rows.task_name(BENCHMARKS["muirbench"]) == "tpru_muirbench"
        assert harness_rows.vlmevalkit_name(BENCHMARKS["lego-puzzles"]) == "TPRU_LEGO"
        assert "TPRU_Test" in harness_rows.by_vlmevalkit_name()


def test_inspect_finds_the_tasks_by_entry_point() -> None:
    (found,) = entry_points(group="inspect_ai", name="tpru_verl")
    assert found.value == "tpru_verl.eval.harnesses.inspect_tasks"


def test_a_vlmevalkit_class_reads_what_was_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VLMEvalKit: its base class is stood in for by the two attributes that are used."""
    monkeypatch.setenv("LMUData", str(tmp_path / "lmu"))
    export("vlmevalkit", tmp_path / "lmu", write_sources(tmp_path))
    made: Any = dataset_class(SimpleNamespace().__class__)
    assert "TPRU_LEGO" in made.supported_datasets()
    data = made.load_data(made, "TPRU_LEGO")
    self = SimpleNamespace(data=data, img_root=str(tmp_path / "images"))
    self.dump_image = lambda line: made.dump_image(self, line)
    cells = json.loads(data.iloc[0]["image"])
    parts = made.build_prompt(self, {**data.iloc[0], "image": cells})
    assert [part["type"] for part in parts].count("image") == 4
    assert Image.open(parts[1]["value"]).size == (168, 112)
    with pytest.raises(FileNotFoundError, match=r"tpru eval export vlmevalkit .* --bench muirbench"):
        made.load_data(made, "TPRU_MUIRBench")


def test_the_launcher_wants_a_checkout(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tpru_verl.eval.harnesses.vlmevalkit",
        str(tmp_path),
        "--data",
        "TPRU_Test",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "found no run.py and vlmeval in it, expected VLMEvalKit's checkout" in done.stderr
