"""Checkpoints as veRL's FSDP workers write them, made from the demo's model without training anything."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

MODEL = Path(__file__).parents[2] / "tpru_verl/demo/checkpoint"
RANK, ALPHA = 4, 8


def write_checkpoint(actor: Path, *, ranks: int = 1, adapter: bool = False, alone: bool = False) -> None:
    """Write the folder `actor`: shards of `ranks` ranks, with an adapter (LoRA), or that alone, if asked."""
    # In a process of its own: torch's process group must not stay in that of the tests.
    given = json.dumps({"actor": str(actor), "ranks": ranks, "adapter": adapter or alone, "alone": alone})
    subprocess.run([sys.executable, __file__, given], check=True)


def write_empty(folder: Path, step: int, *, ranks: int = 1) -> Path:
    """A whole checkpoint of veRL in `folder`, of tensors that hold nothing, and the tracker that names it."""
    actor = folder / f"global_step_{step}/actor"
    actor.mkdir(parents=True)
    kinds = ("model", "optim", "extra_state")
    shards = [f"{kind}_world_size_{ranks}_rank_{rank}.pt" for kind in kinds for rank in range(ranks)]
    for file in (*(actor / name for name in shards), actor.parent / "data.pt"):
        ZipFile(file, "w").close()  # as torch's files are
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    return actor.parent


def _write(request: Mapping[str, Any]) -> None:
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    actor, ranks = Path(request["actor"]), int(request["ranks"])
    actor.mkdir(parents=True)
    shutil.copytree(MODEL, actor / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    state = _state(adapter=request["adapter"])
    if request["alone"]:  # veRL's `save_lora_only`
        state = {name: tensor for name, tensor in state.items() if ".lora_" in name}
    torch.distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",))
    for rank in range(ranks):
        shards = {
            name: DTensor.from_local(
                _part(tensor, rank, ranks),
                mesh,
                [Shard(0)],
                run_check=False,
                shape=tensor.shape,
                stride=tensor.stride(),
            )
            for name, tensor in state.items()
        }
        torch.save(shards, actor / f"model_world_size_{ranks}_rank_{rank}.pt")
    torch.distributed.destroy_process_group()
    if request["adapter"]:
        meta = {"r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM"}
        (actor / "lora_train_meta.json").write_text(json.dumps(meta))


def _part(tensor: Any, rank: int, ranks: int) -> Any:
    """What a rank holds: FSDP2 gives the first ranks one row more, or all there are."""
    parts = list(tensor.chunk(ranks, dim=0))
    return (parts[rank] if rank < len(parts) else tensor[:0]).clone()


def _state(*, adapter: bool) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32)
    if adapter:
        from peft import LoraConfig, get_peft_model

        exclude = r".*visual.*"
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", exclude_modules=exclude)
        model = get_peft_model(model, config)
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if ".lora_B." in name:  # peft's zeros would leave the model as it was
                torch.nn.init.normal_(weight, std=0.1)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


if __name__ == "__main__":
    _write(json.loads(sys.argv[1]))
