"""The demo's evaluation: it asks as the recipe trains, and writes nothing where a row failed."""

from pathlib import Path

import pytest
import yaml

from tpru_verl.demo import evaluate as demo
from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.eval.benchmarks import BENCHMARKS, load
from tpru_verl.eval.results import result_of_row, summarise
from tpru_verl.eval.run import Evaluation
from tpru_verl.eval.store import Reply


def evaluation(rows: Path, *, right: int, failed: str | None = None) -> Evaluation:
    """The first `right` of the rows are answered rightly."""
    results = []
    for i, item in enumerate(load(BENCHMARKS["tpru-test"], str(rows)).items):
        said = item.answer if i < right else "nothing"
        asked = [(item, item.problem, Reply([f"<think>x</think><answer>{said}</answer>"], ["stop"]))]
        results.append(result_of_row("tpru-test", item, asked, failed))
    return Evaluation(results, summarise(results))


def test_rows_are_asked_as_the_recipe_trains(root: Path) -> None:
    data = yaml.safe_load((root / "recipes/verl/tpru_tiny_cpu.yaml").read_text())["data"]
    assert (data["prompt_template"], data["max_response_length"]) == (demo.TEMPLATE, demo.MAX_TOKENS)
    assert data["min_pixels"] == data["max_pixels"] == demo.PIXELS


def test_scores_are_of_all_rows_and_of_each_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, out = tmp_path / "test.parquet", tmp_path / "before.jsonl"
    write_parquet(make_rows(30, seed=1), rows)
    both = [evaluation(rows, right=12), evaluation(rows, right=15)]
    monkeypatch.setattr(demo, "evaluate_rows", lambda *_, **__: both)
    demo.evaluate(tmp_path, rows, out)
    found = demo.score(out)
    assert (found["pooled"]["accuracy"], found["pooled"]["greedy"]) == (0.4, 0.5)
    assert {name: score["n"] for name, score in found.items()} == {
        "pooled": 30,
        "temporal_reordering": 10,
        "next_frame_prediction": 10,
        "previous_frame_review": 10,
    }
    assert all(score["low"] < score["accuracy"] < score["high"] for score in found.values())


def test_a_failed_row_is_an_error_and_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, out = tmp_path / "test.parquet", tmp_path / "before.jsonl"
    write_parquet(make_rows(3, seed=1), rows)
    both = [evaluation(rows, right=3), evaluation(rows, right=3, failed="no answer")]
    monkeypatch.setattr(demo, "evaluate_rows", lambda *_, **__: both)
    with pytest.raises(RuntimeError, match=r"test\.parquet: 3 rows failed, the first: no answer"):
        demo.evaluate(tmp_path, rows, out)
    assert not list(tmp_path.glob("*.jsonl"))
