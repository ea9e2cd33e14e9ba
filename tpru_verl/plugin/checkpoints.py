"""Patches for the checkpoints of veRL 0.9.1: when old ones go, a last one for a run that is asked to end, and
what a resumed run is configured with.

docs/patches.md lists all patches.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tpru_verl.files import write_text
from tpru_verl.plugin.hooks import is_applied, require

if TYPE_CHECKING:
    from omegaconf import DictConfig

logger = logging.getLogger("tpru_verl")

# A file by which `tpru train` asks the trainer to end. The trainer makes it, empty, once it can be asked.
STOP_FILE = "TPRU_STOP_FILE"


class StopAskedError(RuntimeError):
    """Somebody asked the run to end."""


def remove_after_save(trainer_base: ModuleType) -> None:
    """Stock veRL removes the old checkpoint before its tracker names the new one, and forgets it on a resume.

    A run that is killed in between cannot be resumed: its tracker names a checkpoint without weights. Old
    checkpoints of before a resume stay for ever, and of each removed one a folder with `data.pt`. The patch
    writes the tracker at once, and then removes the oldest checkpoints of the folder. On several nodes, with
    a critic and with `async_save` veRL's own way remains: there a checkpoint may lie on other machines.
    """
    from tpru_verl.checkpoints import steps_of
    from tpru_verl.launch.resume import TRACKER

    trainer = trainer_base.PPOTrainer
    require(trainer, "_save_checkpoint")
    original = trainer._save_checkpoint

    def _save_checkpoint(self: Any) -> None:
        config = self.config.trainer
        keep = config.get("max_actor_ckpt_to_keep", None)
        if not keep or not _is_ours(self):
            return original(self)
        _set(config, "max_actor_ckpt_to_keep", None)
        try:
            original(self)
        finally:
            _set(config, "max_actor_ckpt_to_keep", keep)
        folder = Path(config.default_local_dir)
        write_text(folder / TRACKER, str(self.global_steps))
        older = [path for step, path in steps_of(folder).items() if step < self.global_steps]
        for path in older[: max(0, len(older) + 1 - keep)]:
            shutil.rmtree(path, ignore_errors=True)
        return None

    trainer._save_checkpoint = _save_checkpoint


def _is_ours(trainer: Any) -> bool:
    config = trainer.config
    return (
        config.trainer.nnodes == 1
        and not trainer.use_critic
        and not config.trainer.get("remove_previous_ckpt_in_save", False)
        and not (config.actor_rollout_ref.actor.get("checkpoint") or {}).get("async_save", False)
    )


def _set(config: DictConfig, key: str, value: object) -> None:
    from omegaconf import open_dict

    with open_dict(config):
        config[key] = value


# Options of an optimizer that veRL configures; its `lr` changes with each step.
_CONFIGURED = ("initial_lr", "weight_decay", "betas", "eps")


def configured_rates(checkpoint_manager: ModuleType) -> None:
    """Stock veRL takes learning rate, weight decay and betas of the optimizer from the checkpoint it resumes.

    What the run is configured with now has no effect. The patch writes the configured values back after the
    load. The place in the schedule (warm-up, cosine) stays that of the checkpoint.
    """
    manager = checkpoint_manager.FSDPCheckpointManager
    require(manager, "load_checkpoint")
    original = manager.load_checkpoint

    def load_checkpoint(self: Any, *given: Any, **more: Any) -> None:
        if self.optimizer is None or self.lr_scheduler is None:
            return original(self, *given, **more)
        groups = [{name: group.get(name) for name in _CONFIGURED} for group in self.optimizer.param_groups]
        original(self, *given, **more)
        changes = _configure(self.optimizer, self.lr_scheduler, groups)
        if changes and self.rank == 0:
            logger.warning("tpru plugin: %s, as this run is configured", "; ".join(changes))
        return None

    manager.load_checkpoint = load_checkpoint


def _configure(optimizer: Any, scheduler: Any, configured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write configured values over those of a checkpoint; what differed, each once."""
    changes: dict[str, None] = {}
    scheduled = zip(optimizer.param_groups, configured, scheduler.lr_lambdas, strict=True)
    for place, (group, wanted, part) in enumerate(scheduled):
        saved = {**group, "initial_lr": scheduler.base_lrs[place]}  # where the optimizer was not loaded, too
        differ = [name for name in wanted if wanted[name] != saved.get(name)]
        changes |= {f"{name} {saved.get(name)} of the checkpoint -> {wanted[name]}": None for name in differ}
        group.update({name: wanted[name] for name in differ})
        if "initial_lr" in differ:
            scheduler.base_lrs[place] = wanted["initial_lr"]
            group["lr"] = wanted["initial_lr"] * part(scheduler.last_epoch)
            scheduler._last_lr[place] = group["lr"]
    return [*changes]


def save_when_asked(trainer_base: ModuleType) -> None:
    """Stock veRL saves nothing when a run is asked to end: SIGTERM ends its processes where they are.

    With the variable STOP_FILE, the trainer looks into that file before a step and while it waits for
    answers. Once something is in it, it saves the step before, and ends. An update is finished first.
    """
    trainer = trainer_base.PPOTrainer
    require(trainer, "step", "_save_checkpoint", "fit")
    fit, step = trainer.fit, trainer.step

    def fit_stoppable(self: Any, agent_loop_manager: Any) -> None:
        if path := os.environ.get(STOP_FILE):
            write_text(Path(path), "")
        fit(self, agent_loop_manager)

    def step_or_stop(self: Any, metrics: dict, timing_raw: dict) -> object:
        if not os.environ.get(STOP_FILE):
            return step(self, metrics, timing_raw)
        rows = self.train_dataloader.state_dict()
        try:
            stop_if_asked()
            return step(self, metrics, timing_raw)
        except StopAskedError:
            done = self.global_steps - 1
            if done and not _is_saved(self.config.trainer, done):
                _save_step(self, done, rows)
            saved = f"step {done} is saved" if done else "no step was done"
            raise StopAskedError(f"the run was asked to end: {saved}") from None

    trainer.fit = fit_stoppable
    trainer.step = step_or_stop


def _save_step(trainer: Any, done: int, rows: Mapping[str, object]) -> None:
    """Save the weights as those of step `done`, with the data loader's state of its end."""
    # Saving may need the memory that the rollout engines hold.
    trainer.checkpoint_manager.abort_replicas(reject_request=True)
    trainer.checkpoint_manager.sleep_replicas()
    loader, now = trainer.train_dataloader, trainer.global_steps
    trainer.train_dataloader, trainer.global_steps = _State(rows), done
    try:
        trainer._save_checkpoint()
    finally:
        trainer.train_dataloader, trainer.global_steps = loader, now


class _State:
    def __init__(self, state: Mapping[str, object]) -> None:
        self._state = state

    def state_dict(self) -> Mapping[str, object]:
        return self._state


def _is_saved(config: DictConfig, step: int) -> bool:
    from tpru_verl.launch.resume import TRACKER

    tracker = Path(config.default_local_dir) / TRACKER
    return tracker.is_file() and tracker.read_text().strip() == str(step)


def stop_if_asked() -> None:
    """Raises StopAskedError once something is in the file that STOP_FILE names."""
    path = os.environ.get(STOP_FILE)
    if path and Path(path).is_file() and Path(path).stat().st_size:
        raise StopAskedError("the run was asked to end")


def ask_while_waiting(replay_buffer: ModuleType) -> None:
    """As `save_when_asked`, whose other half it is: most of a step may be waiting for answers."""
    require(replay_buffer.ReplayBuffer, "_wait_for_next_poll")
    original = replay_buffer.ReplayBuffer._wait_for_next_poll

    def _wait_for_next_poll(self: Any, partition_id: str, last_debug_time: float) -> float:
        # A validation is no step, and ends first.
        if partition_id == "train" and is_applied(save_when_asked.__name__):
            stop_if_asked()
        return original(self, partition_id, last_debug_time)

    replay_buffer.ReplayBuffer._wait_for_next_poll = _wait_for_next_poll
