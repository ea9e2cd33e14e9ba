"""LoRA: adapters learn after a reference pass, and a frozen vision tower has no backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForImageTextToText
from verl.workers.engine.fsdp import transformer_impl

from tpru_verl.demo.run import CHECKPOINT
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


@pytest.mark.parametrize(
    ("change", "through"), [({}, 0), ({"exclude_modules": None}, 1), ({"offload": True}, 1)]
)
def test_a_frozen_tower_is_no_part_of_the_backward_pass(change: dict[str, Any], through: int) -> None:
    """As veRL builds the actor: with checkpointing, for which PEFT asks for the gradients of inputs."""
    config = SimpleNamespace(
        **{"lora_rank": 2, "lora_alpha": 2, "target_modules": "all-linear", "target_parameters": None},
        exclude_modules=change.get("exclude_modules", r".*\.visual\..*"),
        enable_activation_offload=change.get("offload", False),
    )
    stock = transformer_impl.FSDPEngine._build_lora_module
    if stock.__module__ == adapters.__name__:  # the plugin has been at work in this process
        stock = inspect.getclosurevars(stock).nonlocals["original"]
    patched = SimpleNamespace(FSDPEngine=type("FSDPEngine", (), {"_build_lora_module": stock}))
    adapters.no_gradients_of_frozen_tower(patched)  # type: ignore[arg-type]
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    pixels = torch.randn(32, 1176)
    found = []
    for build in (stock, patched.FSDPEngine._build_lora_module):
        model: Any = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.float32)
        torch.manual_seed(0)
        engine: Any = SimpleNamespace(model_config=config)
        actor: Any = build(engine, model)
        actor.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        actor.train()
        for name, weight in actor.named_parameters():  # B is zero at first: no gradient for A
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        features = actor.base_model.model.model.visual(pixels, grid_thw=grid).pooler_output
        image = model.config.image_token_id
        ids = torch.tensor([[5, *[image] * 4, 6, *[image] * 4, 7, 8]])
        out = actor(
            input_ids=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=(ids == image).int()
        )
        out.logits.square().mean().backward()
        grads = {name: w.grad.clone() for name, w in actor.named_parameters() if w.grad is not None}
        found.append((features.requires_grad, out.logits.detach(), grads))
    (_, logits, grads), (ours, our_logits, our_grads) = found
    assert found[0][0]  # stock goes through it
    assert ours == bool(through)
    torch.testing.assert_close(our_logits, logits)
    assert grads.keys() == our_grads.keys()
    assert any("visual" in name for name in grads) == ("exclude_modules" in change)
    for name, grad in grads.items():
        torch.testing.assert_close(our_grads[name], grad)
