"""Checkpoints of veRL and EasyR1 on disk: found by name, judged by their files; nothing is loaded."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

STEP = "global_step_"  # how both trainers name the folder of a step
ADAPTED = "lora_train_meta.json"  # veRL writes it beside the shards of a model with adapters
_SHARD = re.compile(r"(.+)_world_size_(\d+)_rank_(\d+)\.pt")  # of the model, its optimizer and other state


class Checkpoint(NamedTuple):
    """The shards of one step."""

    step: int | None  # None where no folder above says it
    actor: Path  # the folder that holds the shards and `huggingface/`

    @property
    def ranks(self) -> int:
        """Shards of the model; 0 for one that Megatron wrote.

        A run on fewer GPUs may have saved beside the shards of an earlier one: veRL notes its own number.
        """
        sizes = self._sizes()
        noted = self._noted() if len(sizes) > 1 else None
        return noted if noted in sizes else max(sizes, default=0)

    def _sizes(self) -> set[int]:
        return {size for kind, size, _ in _shards(self.actor) if kind == "model"}

    def _noted(self) -> int | None:
        try:
            return json.loads((self.actor / "fsdp_config.json").read_text(encoding="utf-8"))["world_size"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def lack(self) -> str:
        """What the model lacks, as a save that was cut off leaves it; "" where all of it is there."""
        if (self.actor / "dist_ckpt").is_dir():
            return (
                f"{self.actor}: found shards of Megatron, expected those of FSDP; veRL's own merger joins "
                "them: python -m verl.model_merger merge --backend megatron --help"
            )
        if not self.ranks:
            return f"{self.actor}: found no shards (model_world_size_N_rank_R.pt)"
        sizes = sorted(self._sizes())
        if sizes[1:] and self._noted() not in sizes:
            found = " and ".join(map(str, sizes))
            return f"{self.actor}: found shards of {found} ranks, expected one number; remove the older ones"
        for rank in range(self.ranks):
            shard = self.actor / f"model_world_size_{self.ranks}_rank_{rank}.pt"
            if not zipfile.is_zipfile(shard):
                return f"{shard}: missing or cut off, the shard of one of {self.ranks} ranks"
        config = self.actor / "huggingface/config.json"
        return "" if config.is_file() and config.stat().st_size else f"{config}: missing or empty"


def checkpoints_of(folder: Path) -> list[Checkpoint]:
    """Those in `folder`, by step: a run's folder, a trainer's, that of one step, or its shards' own.

    Whole or not; [] for a folder that holds none, such as an exported model.
    """
    for actor in (folder, folder / "actor", folder.parent if folder.name == "huggingface" else folder):
        if Checkpoint(None, actor).ranks or (actor / "dist_ckpt").is_dir():
            return [Checkpoint(_step_of(actor) or _step_of(actor.parent), actor)]
    for parent in (folder, folder / "checkpoints"):
        if found := steps_of(parent):
            return [Checkpoint(step, path / "actor") for step, path in found.items()]
    return []


def steps_of(folder: Path) -> dict[int, Path]:
    """The folders of steps in `folder` itself, in order."""
    found = {step: path for path in folder.glob(f"{STEP}*") if (step := _step_of(path)) is not None}
    return {step: found[step] for step in sorted(found)}


def is_whole(path: Path, *, all_ranks: bool = True) -> bool:
    """Whether a run can go on from the folder of a step of veRL's FSDP: all its files, each with its end.

    torch saves a zip file, whose list of contents is at its end; `data.pt` is written last. `all_ranks`: the
    shards of all ranks are looked for, which may lie on other nodes.
    """
    ranks = Checkpoint(None, path / "actor").ranks
    shards = [shard for shard in _shards(path / "actor") if shard[1] == ranks]
    files = [path / "actor" / f"{kind}_world_size_{size}_rank_{rank}.pt" for kind, size, rank in shards]
    if not shards or not all(map(zipfile.is_zipfile, [*files, path / "data.pt"])):
        return False
    return not all_ranks or len(shards) == ranks * len({kind for kind, *_ in shards})


def _step_of(folder: Path) -> int | None:
    number = folder.absolute().name.removeprefix(STEP)
    return int(number) if folder.absolute().name.startswith(STEP) and number.isdecimal() else None


def _shards(actor: Path) -> list[tuple[str, int, int]]:
    """Kind, number of ranks and rank of each shard that is there."""
    names = (path.name for path in actor.glob("*_world_size_*_rank_*.pt"))
    return [(m[1], int(m[2]), int(m[3])) for name in names if (m := _SHARD.fullmatch(name))]
