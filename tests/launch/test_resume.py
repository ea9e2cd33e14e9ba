"""A run that would resume an old checkpoint: with nothing left to train, or from other data."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from tpru_verl.launch import resume
from tpru_verl.launch.resume import NothingLeftError, check_resume, last_step, note_run, total_steps
from tpru_verl.launch.settings import Settings


def settings(trainer: str, folder: Path, *, steps: int | None = None, **changes: object) -> Settings:
    model, train = str(changes.get("model", "m")), changes.get("train", ["a.parquet"])
    own = {
        "veRL": {
            "trainer": {
                "default_local_dir": str(folder),
                "resume_mode": changes.get("resume", "auto"),
                "total_training_steps": steps,
                "total_epochs": 2,
                "n_gpus_per_node": 2,
            },
            "data": {"train_files": train, "train_batch_size": 8, "train_max_samples": changes.get("most")},
            "actor_rollout_ref": {"model": {"path": model, "lora_rank": changes.get("lora_rank", 0)}},
        },
        "EasyR1": {
            "trainer": {
                "save_checkpoint_path": str(folder),
                "find_last_checkpoint": changes.get("resume", "auto") == "auto",
                "max_steps": steps,
                "total_epochs": 2,
                "n_gpus_per_node": 2,
            },
            "data": {"train_files": train, "rollout_batch_size": 8},
            "worker": {"actor": {"model": {"model_path": model}}},
        },
    }
    return Settings(trainer, own[trainer])


def checkpoint(folder: Path, step: int) -> None:
    (folder / f"global_step_{step}").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    (folder / "checkpoint_tracker.json").write_text(json.dumps({"last_global_step": step}))


def write_shards(actor: Path, *, ranks: int) -> None:
    actor.mkdir(exist_ok=True)
    for rank in range(ranks):
        (actor / f"model_world_size_{ranks}_rank_{rank}.pt").touch()


@pytest.mark.parametrize("trainer", ["veRL", "EasyR1"])
class TestResume:
    def test_a_new_folder_is_free(self, trainer: str, tmp_path: Path) -> None:
        check_resume(settings(trainer, tmp_path, steps=4), rows=64)

    @pytest.mark.parametrize(("steps", "rows"), [(4, None), (4, 64), (None, 16), (None, 23)])
    def test_nothing_left_to_train_is_refused(
        self, trainer: str, steps: int | None, rows: int | None, tmp_path: Path
    ) -> None:
        checkpoint(tmp_path, 4)
        run = settings(trainer, tmp_path, steps=steps)
        with pytest.raises(ValueError, match=r"found a checkpoint of step 4.*nothing left to train") as told:
            check_resume(run, rows=rows)
        assert f"{run.key('checkpoints')}={tmp_path}" in str(told.value)
        assert f"start anew with {run.key('resume')}=" in str(told.value)

    @pytest.mark.parametrize(("steps", "rows"), [(5, None), (None, 24), (None, None)])
    def test_a_run_that_goes_on_is_resumed(
        self, trainer: str, steps: int | None, rows: int | None, tmp_path: Path
    ) -> None:
        checkpoint(tmp_path, 4)
        check_resume(settings(trainer, tmp_path, steps=steps), rows=rows)

    def test_a_run_that_starts_anew_on_purpose_may(self, trainer: str, tmp_path: Path) -> None:
        checkpoint(tmp_path, 4)
        check_resume(settings(trainer, tmp_path, steps=4, resume="disable"), rows=64)

    def test_of_as_many_gpus_as_it_was_saved_on(self, trainer: str, tmp_path: Path) -> None:
        checkpoint(tmp_path, 4)
        write_shards(tmp_path / "global_step_4/actor", ranks=2)
        run = settings(trainer, tmp_path, steps=9)
        check_resume(run, rows=64)
        write_shards(tmp_path / "global_step_4/actor", ranks=8)
        with pytest.raises(ValueError, match=r"of step 4.* in shards of 8 GPUs, expected 2"):
            check_resume(run, rows=64)

    def test_a_tracker_whose_checkpoint_is_gone_resumes_nothing(self, trainer: str, tmp_path: Path) -> None:
        checkpoint(tmp_path, 4)
        (tmp_path / "global_step_4").rmdir()
        assert last_step(settings(trainer, tmp_path)) is None

    @pytest.mark.parametrize("changed", [{"train": ["b.parquet"]}, {"model": "n"}])
    def test_other_data_or_another_model_are_refused(
        self, trainer: str, changed: dict[str, object], tmp_path: Path
    ) -> None:
        checkpoint(tmp_path, 4)
        note_run(settings(trainer, tmp_path), tmp_path / "run")
        check_resume(settings(trainer, tmp_path, steps=9), rows=64)
        with pytest.raises(ValueError, match=r"found a checkpoint of step 4.* of a run with"):
            check_resume(settings(trainer, tmp_path, steps=9, **changed), rows=64)


class TestEnd:
    """veRL ends by its epochs, by the steps that it is told, and trains on so many rows at most."""

    @pytest.mark.parametrize(
        ("steps", "most", "rows", "total"),
        [(None, None, 64, 16), (4, None, 64, 4), (300, None, 64, 16), (300, 16, 64, 4), (None, -1, 64, 16),
         (None, 16, 64, 4), (4, None, None, 4), (None, 16, None, 0)],
    )  # fmt: skip
    def test_of_verl(
        self, steps: int | None, most: int | None, rows: int | None, total: int, tmp_path: Path
    ) -> None:
        assert total_steps(settings("veRL", tmp_path, steps=steps, most=most), rows) == total

    def test_easyr1_counts_no_epochs_where_it_is_told_the_steps(self, tmp_path: Path) -> None:
        assert total_steps(settings("EasyR1", tmp_path, steps=300), 64) == 300
        assert total_steps(settings("EasyR1", tmp_path), 64) == 16

    @pytest.mark.parametrize(
        ("steps", "longer"),
        [
            (None, "trainer.total_epochs"),
            (300, "trainer.total_epochs"),
            (16, "trainer.total_training_steps and trainer.total_epochs"),
        ],
    )
    def test_what_makes_it_longer_is_named(self, steps: int | None, longer: str, tmp_path: Path) -> None:
        checkpoint(tmp_path, 16)
        with pytest.raises(NothingLeftError, match=rf"ends at step 16; .*, or train longer with {longer}$"):
            check_resume(settings("veRL", tmp_path, steps=steps), rows=64)


@pytest.mark.parametrize(
    ("saved", "rank", "said"),
    [
        (0, 16, r"with no adapters, expected actor_rollout_ref\.model\.lora_rank=16"),
        (16, 0, r"with adapters of rank 16, expected actor_rollout_ref\.model\.lora_rank=0"),
        (16, 64, r"with adapters of rank 16, expected actor_rollout_ref\.model\.lora_rank=64"),
        (16, 16, ""),
        (0, 0, ""),
    ],
)
def test_of_the_same_adapters(saved: int, rank: int, said: str, tmp_path: Path) -> None:
    checkpoint(tmp_path, 4)
    actor = tmp_path / "global_step_4/actor"
    write_shards(actor, ranks=2)
    if saved:
        (actor / "lora_train_meta.json").write_text(json.dumps({"r": saved}))
    with pytest.raises(ValueError, match=said) if said else nullcontext():
        check_resume(settings("veRL", tmp_path, steps=9, lora_rank=rank), rows=80)


def test_verls_own_command_is_warned_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(resume.logger, "warning", lambda form, *values: said.append(form % values))
    recipe = settings("veRL", tmp_path, steps=4, train=["a/hub-id"]).config
    resume.warn_of_resume(recipe)
    assert said == []
    checkpoint(tmp_path, 4)
    resume.warn_of_resume(recipe)
    assert len(said) == 1
    assert "nothing left to train: the run ends at step 4" in said[0]


def test_a_local_model_is_noted_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somewhere else a relative path would be the id of a model on the Hub."""
    (tmp_path / "models/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "checkpoints"
    checkpoint(place, 2)
    run = settings("veRL", place, steps=4, model="models/mine")
    note_run(run, tmp_path / "run")
    assert resume.noted(place)["model"] == str(tmp_path / "models/mine")
    check_resume(run, rows=64)
    before = {**resume.noted(place), "model": "models/mine"}  # as earlier versions wrote it
    (place / resume.NOTE).write_text(json.dumps(before))
    check_resume(run, rows=64)
    note_run(settings("veRL", place, model="Qwen/Qwen3-VL-4B-Instruct"), tmp_path / "run")
    assert resume.noted(place)["model"] == "Qwen/Qwen3-VL-4B-Instruct"


def test_a_checkpoint_that_is_named_is_gone_on_from(tmp_path: Path) -> None:
    """Not from that of the run's own folder; other data may be meant."""
    checkpoint(tmp_path / "own", 9)
    note_run(settings("veRL", tmp_path / "own", train=["b.parquet"]), tmp_path / "run")
    for trainer, key, more in (
        ("veRL", "resume_from_path", {"resume_mode": "resume_path"}),
        ("EasyR1", "load_checkpoint_path", {}),
    ):
        config = {**settings(trainer, tmp_path / "own", steps=36).config}
        config["trainer"] = {**config["trainer"], key: "/old/global_step_35", **more}  # type: ignore[dict-item]
        assert last_step(Settings(trainer, config)) == 35
        check_resume(Settings(trainer, config), rows=None)
        config["trainer"] = {**config["trainer"], "total_training_steps": 35, "max_steps": 35}
        with pytest.raises(NothingLeftError, match=rf"trainer\.{key}=/old/global_step_35: found"):
            check_resume(Settings(trainer, config), rows=None)
