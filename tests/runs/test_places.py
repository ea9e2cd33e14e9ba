"""A run whose recipe leads checkpoints and answers out of its folder: report and export find them."""

import json
from pathlib import Path
from zipfile import ZipFile

import pytest
from support.runs import dump, metrics_line

from tpru_verl.launch import run as started
from tpru_verl.launch.resume import note_run
from tpru_verl.launch.settings import Settings
from tpru_verl.runs import export
from tpru_verl.runs.logs import RunFiles
from tpru_verl.runs.places import places_of, settings_of

SHARD = "model_world_size_1_rank_0.pt"


def step_of(checkpoints: Path, number: int) -> None:
    actor = checkpoints / f"global_step_{number}/actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface/config.json").write_text("{}")
    ZipFile(actor / SHARD, "w").close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose every place but its metrics is on another disk; the answers' one is relative."""
    place, disk = tmp_path / "runs/mine", tmp_path / "disk"
    (place / "rollouts").mkdir(parents=True)  # as `tpru train` makes it
    lines = [(step, {"val-core/tpru/a/acc/mean@1": accuracy}) for step, accuracy in ((5, 0.9), (10, 0.4))]
    validated = (json.dumps({"step": step, "data": data}) + "\n" for step, data in lines)
    first, second = (metrics_line(step) + line for step, line in zip((5, 10), validated, strict=True))
    (place / "metrics.jsonl").write_text(first + second)
    told = {"default_local_dir": str(disk / "saved"), "rollout_data_dir": "disk/said"}
    told["validation_data_dir"] = str(disk / "validated")
    recipe = {"actor_rollout_ref": {}, "trainer": told, "data": {"train_batch_size": 8}}
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    (place / "run.json").write_text(json.dumps({"folder": str(tmp_path)}))
    for step in (5, 10):
        step_of(disk / "saved", step)
        dump(disk / f"said/{step}.jsonl", step)
        dump(disk / f"validated/{step}.jsonl", step)
    note_run(Settings("veRL", recipe), place)
    return place


def test_its_files_are_found(run: Path, tmp_path: Path) -> None:
    files = RunFiles.find(run)
    assert files.rollouts == tmp_path / "disk/said"
    assert files.validation == tmp_path / "disk/validated"
    assert files.checkpoints == tmp_path / "disk/saved"


def test_answers_that_are_not_there_yet_will_come_where_the_recipe_says(run: Path, tmp_path: Path) -> None:
    (tmp_path / "disk/said").rename(tmp_path / "gone")
    assert RunFiles.find(run).rollouts == tmp_path / "disk/said"


@pytest.mark.parametrize("named", ["runs/mine", "disk/saved", "disk/saved/global_step_5/actor"])
def test_its_checkpoints_are_exported_with_what_the_run_recorded(
    run: Path, tmp_path: Path, named: str
) -> None:
    assert export.chosen(run).step == 10
    assert export.chosen(tmp_path / named, best=True).step == 5
    files = export._files(tmp_path / named)
    assert files is not None
    assert files.settings()["data"] == {"train_batch_size": 8}


def test_a_run_that_ended_says_where_its_checkpoints_are(run: Path, tmp_path: Path) -> None:
    commands = ["report", "export"]
    first, *rest = started._next(run, 0, commands)
    assert first == f"all of the run is in {run}, its checkpoints in {tmp_path / 'disk/saved'}"
    assert rest == [f"tpru report {run}", f"tpru export {run} {run}/model"]
    (tmp_path / "disk/saved").rename(tmp_path / "gone")
    assert started._next(run, 0, commands) == [f"all of the run is in {run}", f"tpru report {run}"]


def test_a_checkpoint_within_a_run_knows_its_run(run: Path) -> None:
    step_of(run / "checkpoints", 5)
    assert export.chosen(run / "checkpoints", best=True).step == 5


@pytest.mark.parametrize("original", [True, False])
def test_a_copied_run_has_its_own_files(tmp_path: Path, original: bool) -> None:
    """Its recipe names the folder that it was in, which may still be there."""
    before, copy = tmp_path / "before", tmp_path / "copy"
    recipe = {"actor_rollout_ref": {}, "trainer": {"rollout_data_dir": str(before / "rollouts")}}
    for place in (before, copy) if original else (copy,):
        dump(place / "rollouts/1.jsonl", 1)
        (place / "recipe.yaml").write_text(json.dumps(recipe))
        (place / "run.json").write_text("{}")
    assert RunFiles.find(copy).rollouts == copy / "rollouts"


def test_a_place_of_another_name_in_the_runs_own_folder(run: Path) -> None:
    config = {"actor_rollout_ref": {}, "trainer": {"default_local_dir": str(run / "saved")}}
    assert places_of(run, settings_of(config)).checkpoints == run / "saved"


def test_easyr1_writes_metrics_beside_its_checkpoints(tmp_path: Path) -> None:
    config = {"worker": {}, "trainer": {"save_checkpoint_path": str(tmp_path / "disk")}}
    places = places_of(tmp_path / "run", settings_of(config))
    assert places.metrics == tmp_path / "disk/experiment_log.jsonl"
    assert (places.rollouts, places.validation) == (None, tmp_path / "disk/generations.log")
