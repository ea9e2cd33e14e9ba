"""The reference pass without adapters leaves an FSDP2 actor with adapters that learn."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from verl.workers.engine.fsdp import transformer_impl

from tpru_verl.plugin import adapters


@pytest.fixture
def one_rank(tmp_path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def actor() -> Any:
    """A model with adapters, sharded as veRL shards it: fp32 weights, arithmetic in bf16."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),  # type: ignore[arg-type]
        LoraConfig(r=2, target_modules=["0", "2"]),
    )
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    mesh = init_device_mesh("cpu", (1,))
    return fully_shard(model, mesh=mesh, mp_policy=policy)


@pytest.mark.usefixtures("one_rank")
def test_adapters_learn_after_a_reference_pass_that_comes_first() -> None:
    module = SimpleNamespace(FSDPEngine=type("FSDPEngine", (transformer_impl.FSDPEngine,), {}))
    adapters.keep_adapters_trainable(module)  # type: ignore[arg-type]
    engine = module.FSDPEngine.__new__(module.FSDPEngine)
    engine.module = actor()
    inputs = torch.randn(4, 8)
    with torch.no_grad():
        with engine.disable_adapter():
            reference = engine.module(inputs)
        assert torch.equal(reference, engine.module(inputs))  # B is zero at first: the same model

    engine.module(inputs).float().pow(2).mean().backward()
    learned = {name for name, weight in engine.module.named_parameters() if weight.grad is not None}
    assert learned
    assert all(".lora_" in name for name in learned)
    trained = {name for name, weight in engine.module.named_parameters() if weight.requires_grad}
    assert trained == learned


@pytest.mark.usefixtures("one_rank")
def test_without_the_patch_the_update_fails() -> None:
    """When this fails, the patch can go."""
    model = actor()
    with torch.no_grad(), model.disable_adapter():
        model(torch.randn(4, 8))
    with pytest.raises(RuntimeError, match="attempting to assign a gradient"):
        model(torch.randn(4, 8)).float().pow(2).mean().backward()
