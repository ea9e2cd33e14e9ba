"""veRL's forward passes for a model's classes, until the end of a test."""

from importlib import import_module
from typing import Any

import pytest
import torch

MODELING = "transformers.models.{0}.modeling_{0}"
PATCHED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")


def give_verls_forward(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As veRL's engine does; the classes have their own methods again after the test."""
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    for name in PATCHED:
        for kind in vars(import_module(MODELING.format(name))).values():
            if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
                for method in {"forward", "fast_pos_embed_interpolate"} & set(vars(kind)):
                    monkeypatch.setattr(kind, method, vars(kind)[method])
    apply_monkey_patch(model, use_remove_padding=False)
