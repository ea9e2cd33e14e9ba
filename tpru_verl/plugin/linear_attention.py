"""Patches of veRL's forward of Qwen3.5's linear attention (Gated DeltaNet). docs/patches.md lists all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from tpru_verl.plugin.hooks import replace, require


def packed_sequences_apart(qwen3_5: ModuleType) -> None:
    """Without flash-linear-attention, stock veRL carries the state of a packed sequence into the next one.

    veRL cuts packed sequences apart for a function that takes no `cu_seqlens`. That of transformers, in plain
    PyTorch, takes it among its `**kwargs` and ignores it. Only a parameter of that name counts now.
    """

    def _call_accepts_kwarg(function: Callable, name: str) -> bool:
        return name in inspect.signature(function).parameters

    replace(qwen3_5, "_call_accepts_kwarg", _call_accepts_kwarg)


def newer_linear_attention(qwen3_5: ModuleType) -> None:
    """veRL's forward reads attributes that transformers no longer has, and ends with AttributeErrors.

    Since 5.14 a decoder layer's `layer_type` is called `block_type`. Since 5.16 the linear attention holds no
    functions: they are in its module, or in the packages of their kernels.
    """
    require(qwen3_5, "qwen3_5_decoder_layer_forward", "qwen3_5_gated_delta_net_forward")
    layer_forward = qwen3_5.qwen3_5_decoder_layer_forward
    net_forward = qwen3_5.qwen3_5_gated_delta_net_forward

    def qwen3_5_decoder_layer_forward(self: Any, *args: Any, **kwargs: Any):
        if not hasattr(self, "layer_type"):
            self.layer_type = self.block_type
        return layer_forward(self, *args, **kwargs)

    def qwen3_5_gated_delta_net_forward(self: Any, *args: Any, **kwargs: Any):
        if not hasattr(self, "chunk_gated_delta_rule"):
            plain = import_module(type(self).__module__)
            self.causal_conv1d_fn = _kernel("causal_conv1d", "causal_conv1d_fn")
            self.chunk_gated_delta_rule = (
                _kernel("fla.ops.gated_delta_rule", "chunk_gated_delta_rule")
                or plain.torch_chunk_gated_delta_rule
            )
        return net_forward(self, *args, **kwargs)

    replace(qwen3_5, "qwen3_5_decoder_layer_forward", qwen3_5_decoder_layer_forward)
    replace(qwen3_5, "qwen3_5_gated_delta_net_forward", qwen3_5_gated_delta_net_forward)


def _kernel(package: str, name: str) -> Callable | None:
    """A function for GPUs; None without its package, or without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        return getattr(import_module(package), name)
    except ImportError:
        return None
