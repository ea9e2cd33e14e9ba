"""The demo replaces files by their names, so it takes a new folder or its own, and nobody else's."""

import json
from pathlib import Path

import pytest

from tpru_verl.launch import folder

pytest.importorskip("psutil")
pytest.importorskip("matplotlib")
from tpru_verl.demo import run as demo

THEIRS = ("my.jsonl", "metrics.jsonl", "checkpoints/global_step_1/actor/x.pt", "model/x.safetensors")


def start(out: Path) -> Path:
    return demo._Demo(out, seed=2, steps=3).out


def fill(out: Path, *names: str) -> None:
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("theirs")


@pytest.mark.parametrize("name", [*THEIRS, "page.html", "rows/train.parquet", "notes.txt"])
def test_a_folder_with_files_of_others_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name)
    with pytest.raises(ValueError, match=r"found other files in it, expected a new or empty folder"):
        start(tmp_path)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["theirs"]


def test_the_folder_of_a_run_is_refused_even_of_the_demos_recipe(tmp_path: Path) -> None:
    fill(tmp_path, *THEIRS)
    (tmp_path / folder.START).write_text(json.dumps({"recipe": demo.RECIPE}))
    with pytest.raises(ValueError, match="found a run in it"):
        start(tmp_path)
    assert all((tmp_path / name).exists() for name in THEIRS)


def test_a_file_or_an_address_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "x")
    with pytest.raises(ValueError, match="x: found a file, expected a new or empty folder"):
        start(tmp_path / "x")
    with pytest.raises(ValueError, match="found an address, expected a folder"):
        start(Path("s3://bucket/demo"))


def test_the_working_folder_is_taken_where_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert start(Path()) == tmp_path
    assert json.loads((tmp_path / demo.MARKER).read_text()) == {"seed": 2, "steps": 3, "device": "cpu"}


def test_a_second_demo_replaces_the_results_of_the_first_and_nothing_else(tmp_path: Path) -> None:
    out = start(tmp_path / "demo")
    results = ("before.jsonl", "after-greedy.jsonl", "after-responses.jsonl", "metrics.jsonl", "summary.json")
    fill(out, *results, "train.log", "rollouts/1.jsonl", *THEIRS, folder.START)
    assert start(tmp_path / "demo") == out
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert left == ["demo.json", "model/x.safetensors", "my.jsonl", "run.json"]


def test_the_folder_of_an_earlier_versions_demo_is_named_as_such(tmp_path: Path) -> None:
    fill(tmp_path, "before.jsonl", "summary.json", folder.START)
    with pytest.raises(ValueError, match="an earlier version's demo; remove it or name another one"):
        start(tmp_path)
    assert (tmp_path / "before.jsonl").read_text() == "theirs"
