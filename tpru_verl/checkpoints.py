"""Checkpoints of veRL and EasyR1 on disk: found by name, judged by their files; nothing is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

STEP = "global_step_"  # how both trainers name the folder of a step
_SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")


class Checkpoint(NamedTuple):
    """The shards of one step."""

    step: int | None  # None where no folder above says it
    actor: Path  # the folder that holds the shards and `huggingface/`

    @property
    def ranks(self) -> int:
        """Shards that belong to it; 0 for one that Megatron wrote."""
        return max((int(found[1]) for found in _shards(self.actor)), default=0)

    def lack(self) -> str:
        """What is missing or empty, as a save that was cut off leaves it; "" for a whole checkpoint."""
        if (self.actor / "dist_ckpt").is_dir():
            return (
                f"{self.actor}: found shards of Megatron, expected those of FSDP; veRL's own merger joins "
                "them: python -m verl.model_merger merge --backend megatron --help"
            )
        if not self.ranks:
            return f"{self.actor}: found no shards (model_world_size_N_rank_R.pt)"
        for rank in range(self.ranks):
            shard = self.actor / f"model_world_size_{self.ranks}_rank_{rank}.pt"
            if not shard.is_file() or not shard.stat().st_size:
                return f"{shard}: missing or empty, the shard of one of {self.ranks} ranks"
        config = self.actor / "huggingface/config.json"
        return "" if config.is_file() and config.stat().st_size else f"{config}: missing or empty"


def checkpoints_of(folder: Path) -> list[Checkpoint]:
    """Those in `folder`, by step: a run's folder, a trainer's, that of one step, or its shards' own.

    Whole or not; [] for a folder that holds none, such as an exported model.
    """
    for actor in (folder, folder / "actor", folder.parent if folder.name == "huggingface" else folder):
        if _shards(actor) or (actor / "dist_ckpt").is_dir():
            return [Checkpoint(_step_of(actor) or _step_of(actor.parent), actor)]
    for parent in (folder, folder / "checkpoints"):
        found = [Checkpoint(_step_of(step), step / "actor") for step in parent.glob(f"{STEP}*")]
        if found := [checkpoint for checkpoint in found if checkpoint.step is not None]:
            return sorted(found, key=lambda checkpoint: checkpoint.step or 0)
    return []


def _step_of(folder: Path) -> int | None:
    number = folder.absolute().name.removeprefix(STEP)
    return int(number) if folder.absolute().name.startswith(STEP) and number.isdecimal() else None


def _shards(actor: Path) -> list[re.Match[str]]:
    names = (path.name for path in actor.glob("model_world_size_*_rank_*.pt"))
    return [found for name in names if (found := _SHARD.fullmatch(name))]
