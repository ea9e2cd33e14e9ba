"""Frames in, rows out: sources, filters, descriptions, tasks, negatives, splits and a manifest.

From Python, `build(source, out, BuildOptions(...))` does what `tpru build` does. The names load on first use,
because `tpru --help` imports this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpru_verl.builder.filters import Filters
    from tpru_verl.builder.pipeline import build
    from tpru_verl.builder.stages import BuildOptions
    from tpru_verl.builder.tasks import TaskOptions
    from tpru_verl.builder.video import FrameSampling

__all__ = ["BuildOptions", "Filters", "FrameSampling", "TaskOptions", "build"]

_HOMES = {
    "BuildOptions": "stages",
    "Filters": "filters",
    "FrameSampling": "video",
    "TaskOptions": "tasks",
    "build": "pipeline",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
