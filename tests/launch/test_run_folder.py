"""The folder of a run: what lies in it, and that no second run is mixed into it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.checkpoints import write_empty
from support.rows import reordering, write_parquet

from tpru_verl.launch import folder, run, train
from tpru_verl.launch.plan import Plan
from tpru_verl.recipes import compose

RECIPE = "tpru_tiny_cpu"
ROWS = ["data.train_files=rows.parquet", "data.val_files=rows.parquet"]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans of the runs that were started; nothing trains."""
    plans: list[Plan] = []

    def start(plan: Plan, place: Path, **_: Any) -> int:
        plans.append(plan)
        (place / folder.LOG).write_text(f"start {len(plans)}\n")
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "run", start)
    monkeypatch.setattr(run, "check", lambda plan: plan.check() or "fine")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    write_parquet(tmp_path / "rows.parquet", [reordering(i) for i in range(32)])
    return plans


def checkpoint(place: Path, step: int) -> None:
    saved = place / f"checkpoints/global_step_{step}"
    saved.mkdir(parents=True)
    (saved.parent / "latest_checkpointed_iteration.txt").write_text(str(step))


def test_all_of_a_run_lies_in_one_folder(started: list[Plan], tmp_path: Path) -> None:
    place = tmp_path / "a run, with = and #"
    assert train.train(RECIPE, ROWS, out=place) == 0
    settings = started[0].settings.config
    for key in ("default_local_dir", "rollout_data_dir", "validation_data_dir"):
        assert Path(settings["trainer"][key]).parent == place  # type: ignore[index]
    assert started[0].environment["VERL_FILE_LOGGER_PATH"] == str(place / "metrics.jsonl")
    assert yaml.safe_load((place / "recipe.yaml").read_text())["data"]["train_batch_size"] == 32
    assert json.loads((place / "versions.json").read_text())["trainer"] == str(started[0].trainer)
    assert json.loads((place / "run.json").read_text())["overrides"] == ROWS


@pytest.mark.parametrize("given", ["console", "[console,wandb]"])
def test_metrics_are_kept_whatever_the_loggers(given: str, started: list[Plan], tmp_path: Path) -> None:
    train.train(RECIPE, [*ROWS, f"trainer.logger={given}"], out=tmp_path / "run")
    loggers = [*given.strip("[]").split(","), "file"]
    assert started[0].settings["logger"] == loggers
    assert started[0].command[-1] == f"trainer.logger=[{','.join(loggers)}]"


@pytest.mark.parametrize(
    ("given", "added"),
    [("trainer.logger=null", "trainer.logger=[file]"), ("~trainer.logger", "++trainer.logger=[file]")],
)
def test_metrics_are_kept_without_a_logger(
    given: str, added: str, started: list[Plan], tmp_path: Path
) -> None:
    train.train(RECIPE, [*ROWS, given], out=tmp_path / "run")
    assert started[0].command[-1] == added
    hydra = [word for word in started[0].command[5:] if not word.startswith("hydra.")]
    assert compose(RECIPE, hydra).trainer.logger == ["file"]


def test_command_sh_is_the_command_as_it_ran(
    started: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", "/some where")
    train.train(RECIPE, ROWS, out=tmp_path / "run")
    script = tmp_path / "run/command.sh"
    assert os.access(script, os.X_OK)
    text = script.read_text().replace("exec ", 'printf \'%s\\n\' "$PWD" "$HF_HOME" "$VERL_PLATFORM" ')
    script.write_text(text)
    done = subprocess.run([str(script)], cwd="/", env={}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(tmp_path), "/some where", "cpu", *started[0].command]


def test_a_folder_with_another_run_or_other_files_is_left_alone(started: list[Plan], tmp_path: Path) -> None:
    train.train(RECIPE, ROWS, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"found a run in it.*tpru train --resume"):
        train.train(RECIPE, ROWS, out=tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(ValueError, match="found other files in it"):
        train.train(RECIPE, ROWS, out=tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    train.train(RECIPE, ROWS, out=tmp_path / "empty")
    assert len(started) == 2


def test_a_run_is_continued_as_it_was_started_with_changes_named(
    started: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    train.train(RECIPE, [*ROWS, "data.seed=7"], out=place)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capfd.readouterr()
    assert train.train(None, [], resume=place) == 0
    assert "changed" not in capfd.readouterr().err
    assert started[1].command == started[0].command
    write_parquet(tmp_path / "rows.parquet", [reordering(i) for i in range(40)])
    assert train.train(RECIPE, ["data.seed=8"], resume=place) == 0
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("changed")]
    assert told == ["changed: data.seed: 7 -> 8", f"changed: {tmp_path / 'rows.parquet'}: other rows"]
    assert (place / "train.log").read_text() == "start 3\n"
    assert [(place / f"train.{n}.log").read_text() for n in (1, 2)] == ["start 1\n", "start 2\n"]
    assert len(json.loads((place / "run.json").read_text())["times"]) == 3


@pytest.mark.parametrize(
    ("codes", "starts", "end"),
    [([1, 137, 0], 3, 0), ([1, 1, 1, 1], 3, 1), ([5, 143], 2, 143), ([130], 1, 130), ([4], 1, 4)],
)
def test_a_run_that_fails_is_started_again_so_often(
    codes: list[int],
    starts: int,
    end: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: list[Plan],
) -> None:
    times: list[int] = []

    def fails(plan: Plan, place: Path, **_: Any) -> int:
        times.append(len(json.loads((place / "run.json").read_text())["times"]))
        return codes[len(times) - 1]

    monkeypatch.setattr(run, "run", fails)
    assert train.train(RECIPE, ROWS, out=tmp_path / "run", restarts=2) == end
    assert times == list(range(1, starts + 1))


ANEW = ["trainer.resume_mode=disable"]
NAMED = ["trainer.resume_mode=resume_path", "++trainer.resume_from_path=/old/global_step_35"]


@pytest.mark.parametrize("began", [ANEW, NAMED])
class TestGoesOn:
    """A run that was told which checkpoint to begin with goes on from its own, once it has saved one."""

    def test_when_it_is_resumed(self, began: list[str], started: list[Plan], tmp_path: Path) -> None:
        place = tmp_path / "run"
        train.train(RECIPE, [*ROWS, *began], out=place)
        train.train(None, [], resume=place)  # nothing was saved
        assert started[1].command == started[0].command
        write_empty(place / "checkpoints", 2)
        train.train(None, ["data.seed=7"], resume=place)
        assert not [word for word in started[2].command if "trainer.resume" in word]
        assert started[2].settings["resume"] == "auto"
        train.train(None, ["trainer.resume_mode=disable"], resume=place)
        assert started[3].settings["resume"] == "disable"

    def test_when_it_is_started_again(
        self, began: list[str], started: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        modes: list[object] = []

        def fails(plan: Plan, place: Path, **_: Any) -> int:
            modes.append(plan.settings["resume"])
            if len(modes) == 2:
                write_empty(place / "checkpoints", 2)
            return 1

        monkeypatch.setattr(run, "run", fails)
        train.train(RECIPE, [*ROWS, *began], out=tmp_path / "run", restarts=3)
        first = began[0].partition("=")[2]
        assert modes == [first, first, "auto", "auto"]


def test_another_recipe_is_said_before_what_follows_from_it(
    started: list[Plan], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train.train(RECIPE, ROWS, out=tmp_path / "run")
    with pytest.raises(ValueError, match="ppo_mini_batch_size=128"):
        train.train("tpru_7b", ["data.train_batch_size=8"], resume=tmp_path / "run", dry_run=True)
    assert f"changed: recipe: {RECIPE} -> tpru_7b (without a recipe," in capfd.readouterr().err


@pytest.mark.parametrize("out", ["sub/../runs/a", "../here/runs/a"])
def test_the_folder_is_named_without_detours(
    out: str, started: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    monkeypatch.chdir(here)
    data = [f"{key}={tmp_path / 'rows.parquet'}" for key in ("data.train_files", "data.val_files")]
    train.train(RECIPE, data, out=Path(out))
    train.train(None, [], resume=Path("sub/../runs/a"))
    for plan in started:
        assert plan.environment["VERL_FILE_LOGGER_PATH"] == str(here / "runs/a/metrics.jsonl")
        assert ".." not in " ".join(plan.command)
    assert len(started) == 2


@pytest.mark.parametrize("failed", [0, 1])  # resumed by the user, or by --restarts
def test_the_checkpoint_that_a_run_goes_on_from_is_named(
    failed: int,
    started: list[Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place, codes = tmp_path / "run", [failed, 0]

    def saves(plan: Plan, place: Path, **_: Any) -> int:
        if len(codes) == 2:
            checkpoint(place, 2)
        return codes.pop(0)

    train.train(RECIPE, ROWS, out=place)
    assert "step" not in capfd.readouterr().err
    monkeypatch.setattr(run, "run", saves)
    train.train(None, [], resume=place, restarts=1)
    if not failed:
        train.train(None, [], resume=place)
    told = [line for line in capfd.readouterr().err.splitlines() if " step " in line]
    assert told == [
        "found no checkpoint: the run begins with step 1",
        f"resuming after step 2 ({place / 'checkpoints/global_step_2'})",
    ]


def test_a_run_whose_steps_are_done_says_so_and_changes_nothing(
    started: list[Plan], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    train.train(RECIPE, [*ROWS, "trainer.total_training_steps=4"], out=place)
    checkpoint(place, 4)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert train.train(None, [], resume=place) == train.NOTHING_LEFT == 3
    assert "nothing left to train: the run ends at step 4" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert train.train(None, ["trainer.total_training_steps=5"], resume=place) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"resume": Path("nothing")}, "--resume .*/nothing: found no run.json in it"),
        ({"resume": Path(__file__)}, r"--resume .*\.py: found no run.json in it, expected the folder"),
        ({"resume": Path("x"), "out": Path("y")}, "found --out and --resume"),
        ({}, "found no recipe"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], said: str, started: list[Plan]) -> None:
    with pytest.raises(ValueError, match=said):
        train.train(None, [], **given)
    assert not started


def test_dry_run_makes_nothing(started: list[Plan], tmp_path: Path) -> None:
    assert train.train(RECIPE, ROWS, dry_run=True) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
