"""Where a run of `tpru train` writes. Its recipe may lead checkpoints and answers out of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tpru_verl import trainers
from tpru_verl.launch import folder
from tpru_verl.launch.settings import Settings

EASYR1_METRICS, EASYR1_GENERATIONS = "experiment_log.jsonl", "generations.log"


class Places(NamedTuple):
    """Files and folders that need not be there yet. `validation`: a folder, or EasyR1's one file."""

    metrics: Path
    checkpoints: Path
    rollouts: Path | None
    validation: Path


def settings_of(config: Mapping[str, Any]) -> Settings:
    """A composed recipe, which names its trainer by its keys alone."""
    return Settings(trainers.VERL if "actor_rollout_ref" in config else trainers.EASYR1, config)


def places_of(run: Path, settings: Settings, started_in: Path | None = None) -> Places:
    """The places of the run in the folder `run`, by its recipe.

    `started_in`: the folder that relative paths of the recipe begin in, without one the working directory.
    """

    def place(name: str) -> Path:
        told = settings.text(name) if settings.key(name) else ""
        return _place(run, (started_in or Path()) / told if told and "\0" not in told else run / name)

    checkpoints = place("checkpoints")
    if settings.trainer == trainers.VERL:
        return Places(run / folder.METRICS, checkpoints, place("rollouts"), place("validation"))
    # EasyR1 writes beside its checkpoints, where `trainer.logger` has `file`, which only its head knows.
    return Places(checkpoints / EASYR1_METRICS, checkpoints, None, checkpoints / EASYR1_GENERATIONS)


def _place(run: Path, told: Path) -> Path:
    """The path that the recipe tells, or that of the same name in `run`, which was moved or copied since."""
    here = run / told.name
    moved = not is_there(told) and here.is_dir() and any(here.iterdir())
    return here if moved or is_there(told.parent / folder.START) else told


def is_there(path: Path) -> bool:
    """Also False in a folder that this user may not enter, as a path of another machine may be."""
    try:
        return path.exists()
    except OSError:
        return False
