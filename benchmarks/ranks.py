"""Bytes of one update with FSDP2 on 1 and 2 ranks, beside the estimates of docs/scale.md and `tpru doctor`.

    python benchmarks/ranks.py

The model is a small Qwen2.5-VL, sharded by veRL's own function: weights and gradients in fp32, compute in
bf16, gradients reduced in fp32, AdamW. The script counts two things on a rank: its weights, gradients and
Adam's moments, and the bytes that the collectives of a forward and backward pass bring to it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import cast

import measure
import torch
from scale import SMALL, exchanged, model_of
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode
from verl.utils.fsdp_utils import apply_fsdp2

from tpru_verl.doctor import memory

SHAPE = SMALL._replace(layers=6, hidden=512, intermediate=2048, heads=8)
TOKENS, PATCHES = 64, 16


class Arriving(TorchDispatchMode):
    """Sums the bytes that gathering and reducing collectives bring to a rank from the others."""

    def __init__(self, world: int) -> None:
        super().__init__()
        self.share, self.gathered, self.reduced = (world - 1) / world, 0.0, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if name.startswith("c10d._allgather_base_"):
            self.gathered += self.share * args[0].nbytes
        elif name.startswith("c10d._reduce_scatter_base_"):
            self.reduced += self.share * args[1].nbytes
        return func(*args, **(kwargs or {}))


def rank_of(rank: int, world: int, folder: str) -> None:
    """One update; rank 0 writes what it counted."""
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = model_of(SHAPE, "cpu").float()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh("cpu", (world,))  # without one FSDP2 takes a GPU that it sees
    apply_fsdp2(model, {"mesh": mesh, "mp_policy": policy, "reshard_after_forward": True}, {})
    adam = torch.optim.AdamW(model.parameters(), lr=1e-6)
    model.config.image_token_id = SHAPE.vocabulary - 1
    ids = torch.randint(0, SHAPE.vocabulary - 1, (1, TOKENS))
    ids[0, : PATCHES // SHAPE.merge**2] = model.config.image_token_id
    inputs = {
        "input_ids": ids,
        "position_ids": torch.arange(TOKENS).expand(3, 1, -1),
        "pixel_values": torch.randn(PATCHES, 3 * 2 * SHAPE.patch**2),
        "image_grid_thw": torch.tensor([[1, 4, PATCHES // 4]]),
    }
    with Arriving(world) as arriving:
        model(**inputs, labels=ids, use_cache=False).loss.backward()
    adam.step()

    def own(tensor: torch.Tensor) -> int:
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes

    parameters = list(model.parameters())
    moments = [value for state in adam.state.values() for value in state.values() if value.dim()]
    states = sum(map(own, [*parameters, *(cast(torch.Tensor, p.grad) for p in parameters), *moments]))
    if rank == 0:
        torch.save((states, arriving.gathered, arriving.reduced), Path(folder, "counted"))
    destroy_process_group()


def counted(world: int) -> tuple[int, float, float]:
    """Bytes of a rank's states, of the weights and of the gradients that came to it."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_of, (world, folder), nprocs=world)
        states, gathered, reduced = torch.load(Path(folder, "counted"))
    if world > 1 and not (gathered and reduced):
        raise SystemExit("ranks: counted no collective, expected FSDP's: their names may have changed")
    return states, gathered, reduced


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    rows = [["ranks", "", "counted, MB", "estimated, MB", "estimated / counted"]]
    for world in args.ranks:
        states, gathered, reduced = counted(world)
        weights, gradients = exchanged(SHAPE, world)
        each = memory.WEIGHT + memory.GRADIENT + memory.ADAM
        for name, found, estimated in (
            ("weights, gradients, Adam", states, SHAPE.parameters * each / world),
            ("weights from the other ranks, forward and backward", gathered, 2 * weights),
            ("gradients from the other ranks", reduced, gradients),
        ):
            ratio = f"{estimated / found:.3f}" if found else ""
            rows.append([str(world), name, f"{found / 1e6:.2f}", f"{estimated / 1e6:.2f}", ratio])
    print(measure.markdown(rows, f"One update of {SHAPE.parameters / 1e6:.1f} million parameters"))


if __name__ == "__main__":
    main()
