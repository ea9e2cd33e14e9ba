"""Patch for LoRA beside a KL term. docs/patches.md lists all patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from tpru_verl.plugin.hooks import require


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
