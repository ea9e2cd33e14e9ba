"""What only importing tells, as JSON: torch and its devices, torchvision's operators, flash-attn, our plugin.

Started by `machine` in a process of its own: imports take seconds, and a broken one may end its process.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import TypedDict

from tpru_verl.launch.apart import ask


class Device(TypedDict):
    name: str
    bytes: int


class Probe(TypedDict):
    """`errors`: module -> why it cannot be imported; `cuda` and `driver`: versions, "" without."""

    errors: dict[str, str]
    cuda: str
    driver: str
    devices: list[Device]
    plugin: str  # loaded, off, missing, or what it warned
    trainer_error: str


def probe(modules: list[str]) -> Probe:
    """Import `modules` one after another, then `verl`, in a fresh process. Raises nothing."""
    nothing = Probe(errors={}, cuda="", driver="", devices=[], plugin="missing", trainer_error="")
    try:
        return ask(look, modules, seconds=300)
    except RuntimeError as error:
        return {**nothing, "errors": {"torch": f"importing it: {error}"}}


def _error_of(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary raises what it likes
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _devices() -> list[Device]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [Device(name=each.name, bytes=each.total_memory) for each in found]


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""


def _plugin() -> tuple[str, str]:
    """Whether `import verl` brought our plugin along, and the error of that import."""
    import logging

    warned: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: warned.append(record.getMessage())
    logging.getLogger("tpru_verl").addHandler(listener)
    if error := _error_of("verl"):
        return "missing", error
    if os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower() == "none":
        return "off", ""
    if "tpru_verl.plugin" not in sys.modules:
        return "missing", ""
    return (warned[0], "") if warned else ("loaded", "")


def look(modules: list[str]) -> Probe:
    errors = {module: error for module in modules if (error := _error_of(module))}
    plugin, trainer_error = _plugin()
    cuda, devices = "", []
    if "torch" in sys.modules:
        import torch

        cuda, devices = torch.version.cuda or "", _devices()
    return Probe(
        errors=errors,
        cuda=cuda,
        driver=_driver(),
        devices=devices,
        plugin=plugin,
        trainer_error=trainer_error,
    )
