"""Checkpoints of veRL: the old one goes last, a killed save is resumed, and a run that is asked saves."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("verl")
from verl.trainer.ppo.v1 import replay_buffer, trainer_base
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
from verl.utils.torch_functional import get_constant_schedule_with_warmup

from tpru_verl.checkpoints import is_whole, steps_of
from tpru_verl.launch.resume import TRACKER, mend_tracker
from tpru_verl.launch.settings import Settings
from tpru_verl.plugin import checkpoints, hooks

KINDS = ("model", "optimizer", "extra")


def write_checkpoint(folder: Path, step: int, ranks: int = 1) -> Path:
    """As veRL's FSDP saves it."""
    actor = folder / f"global_step_{step}/actor"
    actor.mkdir(parents=True)
    for rank in range(ranks):
        for kind in ("model", "optim", "extra_state"):
            torch.save({"step": step}, actor / f"{kind}_world_size_{ranks}_rank_{rank}.pt")
    torch.save({"step": step}, actor.parent / "data.pt")
    return actor.parent


class Trainer:
    """The parts of veRL's trainer that save. `seen`: what lay in the folder when a save began."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        config = {"default_local_dir": str(folder), "max_actor_ckpt_to_keep": 1, "nnodes": 1, **changes}
        self.config = OmegaConf.create({"trainer": config, "actor_rollout_ref": {"actor": {}}})
        self.folder, self.use_critic, self.global_steps = folder, False, 0
        self.keeps: list[object] = []
        self.rows: list[object] = []
        self.slept = False
        self.checkpoint_manager = SimpleNamespace(
            abort_replicas=lambda reject_request: None, sleep_replicas=lambda: setattr(self, "slept", True)
        )
        self.train_dataloader = SimpleNamespace(state_dict=lambda: {"drawn": self.global_steps - 1})

    def fit(self, manager: object) -> None:
        for self.global_steps in range(1, 100):
            self.step({}, {})

    def step(self, metrics: dict, timing: dict) -> str:
        if self.global_steps == 3:
            Path(os.environ[checkpoints.STOP_FILE]).write_text("stop")
        keys = {f"{state}_keys": {"train": ()} for state in ("pending", "running", "finished", "failure")}
        buffer: Any = SimpleNamespace(poll_interval=0.0, **keys)
        replay_buffer.ReplayBuffer._wait_for_next_poll(buffer, "train", float("inf"))
        return "batch"

    def _save_checkpoint(self) -> None:
        self.keeps.append(self.config.trainer.max_actor_ckpt_to_keep)
        self.rows.append(self.train_dataloader.state_dict())
        write_checkpoint(self.folder, self.global_steps)
        (self.folder / TRACKER).write_text(str(self.global_steps))


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    patched = type("Patched", (Trainer,), dict(vars(Trainer)))
    module: Any = SimpleNamespace(PPOTrainer=patched)
    checkpoints.remove_after_save(module)
    checkpoints.save_when_asked(module)
    return patched


def save(trainer: Any, *steps: int) -> None:
    for step in steps:
        trainer.global_steps = step
        trainer._save_checkpoint()


class TestRemoval:
    def test_workers_remove_nothing_and_the_oldest_go_after_the_tracker(
        self, trainer: Any, tmp_path: Path
    ) -> None:
        one = trainer(tmp_path, max_actor_ckpt_to_keep=2)
        save(one, 2, 4, 6)
        assert one.keeps == [None] * 3
        assert one.config.trainer.max_actor_ckpt_to_keep == 2
        assert list(steps_of(tmp_path)) == [4, 6]
        assert (tmp_path / TRACKER).read_text() == "6"

    def test_checkpoints_of_before_a_resume_go_too(self, trainer: Any, tmp_path: Path) -> None:
        save(trainer(tmp_path), 2)
        save(trainer(tmp_path), 4)
        assert list(steps_of(tmp_path)) == [4]

    def test_a_save_that_fails_leaves_the_one_before(
        self, trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(trainer(tmp_path), 2)
        monkeypatch.setattr("torch.save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space"):
            save(trainer(tmp_path), 4)
        assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_2")
        assert is_whole(tmp_path / "global_step_2")

    @pytest.mark.parametrize("changes", [{"nnodes": 2}, {"max_actor_ckpt_to_keep": None}])
    def test_where_checkpoints_may_lie_elsewhere_verl_removes_them(
        self, changes: dict[str, Any], trainer: Any, tmp_path: Path
    ) -> None:
        one = trainer(tmp_path, **changes)
        save(one, 2, 4)
        assert one.keeps == [one.config.trainer.max_actor_ckpt_to_keep] * 2
        assert list(steps_of(tmp_path)) == [2, 4]


class TestKilledSave:
    def settings(self, folder: Path, nodes: int = 1) -> Settings:
        config = {"default_local_dir": str(folder), "resume_mode": "auto", "nnodes": nodes}
        return Settings("veRL", {"trainer": config})

    @pytest.mark.parametrize("named", ["2", "", "x", "9"])
    def test_the_newest_whole_one_is_resumed(self, named: str, tmp_path: Path) -> None:
        for step in (2, 4, 10):
            write_checkpoint(tmp_path, step)
        (tmp_path / "global_step_10/data.pt").write_bytes(b"PK half")  # killed while it was saved
        for shard in (tmp_path / "global_step_2/actor").iterdir():  # removed before the tracker was written
            shard.unlink()
        (tmp_path / TRACKER).write_text(named)
        said = mend_tracker(self.settings(tmp_path))
        assert said is not None
        assert "step 4" in said
        assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_4")
        assert mend_tracker(self.settings(tmp_path)) is None

    def test_a_tracker_that_is_right_stays(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, 2)
        write_checkpoint(tmp_path, 4)
        (tmp_path / TRACKER).write_text("2")
        assert mend_tracker(self.settings(tmp_path)) is None
        assert mend_tracker(self.settings(tmp_path / "new")) is None

    def test_a_checkpoint_without_the_shard_of_a_rank_is_not_whole(self, tmp_path: Path) -> None:
        saved = write_checkpoint(tmp_path, 2, ranks=2)
        assert is_whole(saved)
        (saved / "actor/optim_world_size_2_rank_1.pt").unlink()
        assert not is_whole(saved)
        assert is_whole(saved, all_ranks=False)


class TestStop:
    def test_a_run_that_is_asked_saves_the_step_before_with_its_rows(
        self, trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(checkpoints.STOP_FILE, str(tmp_path / "stop"))
        one = trainer(tmp_path / "checkpoints")
        with pytest.raises(checkpoints.StopAskedError, match="step 2 is saved"):
            one.fit(None)
        assert list(steps_of(tmp_path / "checkpoints")) == [2]
        assert one.rows == [{"drawn": 2}]
        assert one.slept

    def test_before_the_first_step_nothing_is_saved(
        self, trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(checkpoints.STOP_FILE, str(tmp_path / "stop"))
        (tmp_path / "stop").write_text("stop")
        one = trainer(tmp_path / "checkpoints")
        one.global_steps = 1
        with pytest.raises(checkpoints.StopAskedError, match="no step was done"):
            one.step({}, {})
        assert not (tmp_path / "checkpoints").exists()

    def test_a_run_that_starts_cannot_be_stopped_by_an_old_file(
        self, trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(checkpoints.STOP_FILE, str(tmp_path / "stop"))
        (tmp_path / "stop").write_text("stop")
        one = trainer(tmp_path / "checkpoints")
        with pytest.raises(checkpoints.StopAskedError, match="step 2 is saved"):
            one.fit(None)

    def test_without_the_variable_nothing_is_looked_for(
        self, trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(checkpoints.STOP_FILE, raising=False)
        one = trainer(tmp_path)
        one.global_steps = 1
        assert one.step({}, {}) == "batch"

    def test_the_wait_does_not_end_where_nobody_would_save(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As with TPRU_SKIP_PATCHES=save_when_asked: the run would end with an error, and a file of before
        would end it at once."""
        monkeypatch.setenv(checkpoints.STOP_FILE, str(tmp_path / "stop"))
        monkeypatch.setattr(hooks, "_applied", hooks._applied - {"save_when_asked"})
        one = Trainer(tmp_path)
        one.global_steps = 3  # whose step writes the file, and then waits
        assert one.step({}, {}) == "batch"


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    yield
    torch.distributed.destroy_process_group()


class Resumable:
    """An actor as veRL's FSDP engine makes it, with its manager of checkpoints."""

    def __init__(
        self, lr: float, weight_decay: float, *, warmup: int = 0, load: Sequence[str] = KINDS
    ) -> None:
        self.model: Any = torch.nn.Linear(2, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=weight_decay)
        self.scheduler = get_constant_schedule_with_warmup(self.optimizer, warmup)
        contents: Any = OmegaConf.create({"load_contents": [*load], "save_contents": [*KINDS]})
        processor: Any = object()
        self.manager = FSDPCheckpointManager(self.model, self.optimizer, self.scheduler, processor, contents)

    def step(self) -> float:
        """The learning rate of one step."""
        rate = self.optimizer.param_groups[0]["lr"]
        self.model(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()
        self.scheduler.step()
        return rate

    def save(self, folder: Path) -> str:
        kinds = {
            "model": self.model.state_dict(),
            "optim": self.optimizer.state_dict(),
            "extra_state": {"lr_scheduler": self.scheduler.state_dict()},
        }
        for kind, state in kinds.items():
            torch.save(state, folder / f"{kind}_world_size_1_rank_0.pt")
        return str(folder)


@pytest.mark.usefixtures("group")
class TestConfiguredRates:
    """veRL's own manager and schedule."""

    @pytest.mark.parametrize("load", [KINDS, ("model", "extra")])
    def test_what_a_resumed_run_is_configured_with_holds(
        self, load: Sequence[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = Resumable(1e-6, 0.01)
        before.step()
        after = Resumable(2e-7, 0.1, load=load)
        with caplog.at_level("WARNING", logger="tpru_verl"):
            after.manager.load_checkpoint(before.save(tmp_path))
        assert [after.step(), after.step()] == [2e-7, 2e-7]
        assert after.optimizer.param_groups[0]["weight_decay"] == 0.1
        assert after.scheduler.get_last_lr() == [2e-7]
        (said,) = [record.getMessage() for record in caplog.records if record.name == "tpru_verl"]
        assert "initial_lr 1e-06 of the checkpoint -> 2e-07" in said

    def test_the_place_in_the_warm_up_stays(self, tmp_path: Path) -> None:
        before = Resumable(1e-6, 0.01, warmup=4)
        assert before.step() == 0
        after = Resumable(2e-6, 0.01, warmup=4)
        after.manager.load_checkpoint(before.save(tmp_path))
        assert [after.step() for _ in range(4)] == pytest.approx([0.5e-6, 1e-6, 1.5e-6, 2e-6])

    def test_nothing_is_said_where_nothing_differs(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        before, after = Resumable(1e-6, 0.01), Resumable(1e-6, 0.01)
        before.step()
        after.manager.load_checkpoint(before.save(tmp_path))
        assert after.optimizer.state_dict()["param_groups"] == before.optimizer.state_dict()["param_groups"]
        assert not [record for record in caplog.records if record.name == "tpru_verl"]


def test_the_patches_are_applied_to_verls_own_classes() -> None:
    for name in ("fit", "step", "_save_checkpoint"):
        method = getattr(trainer_base.PPOTrainer, name)
        assert method.__module__ == "tpru_verl.plugin.checkpoints", name
    assert replay_buffer.ReplayBuffer._wait_for_next_poll.__module__.startswith("tpru_verl.plugin.")
