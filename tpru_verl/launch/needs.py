"""What a run needs of packages and of Ray's CPUs. Without it veRL dies, or waits, minutes after the start."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tpru_verl import trainers
from tpru_verl.launch.settings import Settings, value_at

FLASH_ATTN = "pip install flash-attn==2.8.3 --no-build-isolation"
# CPUs of Ray that veRL 0.9.1 asks for and keeps: of a GPU (`ResourcePoolManager.max_colocate_count`), of
# TransferQueue's controller, and of each of its storage units. Agent loops and reward workers keep none: a
# run of the tiny recipe with four of each starts with 5 CPUs, and waits for ever with 4.
A_GPU, CONTROLLER, A_UNIT = 3, 1, 1
_UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
_CPUS = "ray_kwargs.ray_init.num_cpus"


def joins_a_cluster(config: Mapping) -> bool:
    """Whether the run joins a cluster of Ray, whose packages, CPUs and GPUs may be elsewhere.

    With `ray_kwargs.ray_init.address=local` Ray starts one of its own whatever RAY_ADDRESS says.
    """
    address = value_at(config, "ray_kwargs.ray_init.address")
    return address != "local" and bool(address or os.environ.get("RAY_ADDRESS"))


def flash_attn(settings: Settings) -> str:
    """Which attention the run uses, for the eye.

    Raises RuntimeError where that is flash-attn, which is not installed: transformers would raise ImportError
    in veRL's worker. veRL 0.9.1 asks for `flash_attention_2` unless told, and packed sequences go through
    flash-attn whatever it is told (`verl/models/transformers/qwen2_vl.py`).
    """
    asked = settings.text("attention") or "flash_attention_2"
    packed = bool(settings["remove_padding"])
    if settings["device"] == "cpu" or not (packed or asked.startswith("flash_attention")):
        return f"{asked}, sequences are padded"
    if (version := trainers.version_of("flash-attn")) is not None:
        return f"{asked} of flash-attn {version}, sequences are {'packed' if packed else 'padded'}"
    why = settings.said("remove_padding") if packed else f"{settings.key('attention')}={asked}"
    raise RuntimeError(
        f"{why}: found no package flash-attn, expected it; {FLASH_ATTN}, or add the overlay +tpru=sdpa, "
        "which needs more memory and time"
    )


def ray_cpus(settings: Settings) -> str:
    """CPUs that Ray would have and the run would keep, for the eye.

    Raises RuntimeError where they are too few: veRL waits for ever (its issue 7656). On several nodes only
    Ray knows, and nothing is said.
    """
    gpus = settings.integer("gpus") * max(1, settings.integer("nodes"))
    units = _units(settings.config)
    need = A_GPU * gpus + CONTROLLER + A_UNIT * units
    if settings.integer("nodes") > 1:
        return f"{need} needed, on all nodes together"
    told = value_at(settings.config, _CPUS)
    have = int(told) if isinstance(told, (int, float)) else _own_cpus()
    if need <= have:
        said = f": the settings tell Ray {_CPUS}={told}, whatever this machine has" if told else ""
        return f"{need} of {have} needed{said}"
    fewer = have - A_GPU * gpus - CONTROLLER
    lower = f"set {_UNITS}={min(fewer, 2)}, or " if fewer > 0 and units else ""
    raise RuntimeError(
        f"{_CPUS}={told}: found {have} CPUs for Ray, expected {need} ({A_GPU} for each GPU, "
        f"{CONTROLLER} for TransferQueue and {units} for its storage), without which veRL waits for ever; "
        f"{lower}let Ray count more than there are with {_CPUS}={need}"
    )


def _units(config: Mapping) -> int:
    if value_at(config, "transfer_queue.backend.storage_backend") not in (None, "SimpleStorage"):
        return 0
    found = value_at(config, _UNITS)
    return found if isinstance(found, int) else 0


def _own_cpus() -> int:
    """As Ray counts those of this machine, which knows containers and not affinities."""
    try:
        from ray._private.utils import get_num_cpus
    except ImportError:  # another Ray, or none: the next check says so
        return os.cpu_count() or 1
    return int(get_num_cpus(override_docker_cpu_warning=True))


def check(settings: Settings) -> None:
    """Raises RuntimeError, in one line, for what is missing here. EasyR1 asks Ray itself, and says so."""
    if settings.trainer != trainers.VERL or joins_a_cluster(settings.config):
        return
    flash_attn(settings)
    ray_cpus(settings)
