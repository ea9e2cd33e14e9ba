"""Patches for LoRA. docs/patches.md lists all patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from tpru_verl.plugin.hooks import replace, require
from tpru_verl.plugin.vision import TOWERS


def keep_adapters_trainable(transformer_impl: ModuleType) -> None:
    """Stock veRL's reference pass without adapters must not be the first pass of an FSDP2 actor.

    PEFT takes the gradients of disabled adapters away, and FSDP2 remembers that from its first pass. The
    update then ends with `attempting to assign a gradient with dtype 'c10::BFloat16'` (seen with veRL 0.9.1,
    torch 2.13, peft 0.21). Stock veRL's first pass is the one for the old log-probabilities, which
    `on_policy` saves. The patch gives the adapters their gradients back before the pass, which needs none.
    """
    engine = transformer_impl.FSDPEngine
    require(engine, "disable_adapter")
    original = engine.disable_adapter

    @contextmanager
    def disable_adapter(self: Any) -> Iterator[None]:
        trained = [weight for weight in self.module.parameters() if weight.requires_grad]
        with original(self):
            for weight in trained:
                weight.requires_grad_(True)
            yield

    engine.disable_adapter = disable_adapter


def no_gradients_of_frozen_tower(transformer_impl: ModuleType) -> None:
    """With LoRA the backward pass goes through the vision tower, though none of its weights is trained.

    PEFT's `enable_input_require_grads` asks for gradients of the tower's input, too. With the patch a tower
    without trained weights runs without gradients. Not with `enable_activation_offload`: it counts on a
    backward pass of each layer that it has wrapped.
    """
    import torch

    engine = transformer_impl.FSDPEngine
    require(engine, "_build_lora_module")
    original = engine._build_lora_module

    # Before FSDP wraps the model: afterwards a tower may have lent its weights to a flat parameter elsewhere.
    def _build_lora_module(self: Any, module: Any) -> Any:
        built = original(self, module)
        for tower in built.modules() if not self.model_config.enable_activation_offload else ():
            frozen = not any(weight.requires_grad for weight in tower.parameters())
            if type(tower).__name__ in TOWERS.values() and frozen:
                tower.forward = torch.no_grad()(tower.forward)
        return built

    replace(engine, "_build_lora_module", _build_lora_module)
