"""The benchmarks of the paper. A new one is a module in this folder and its name in `NAMES`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpru_verl.eval.benchmarks.base import Benchmark, Loaded, load

    BENCHMARKS: dict[str, Benchmark]

NAMES = (
    "tpru-test",
    "muirbench",
    "lego-puzzles",
    "blink",
    "mmstar",
    "realworldqa",
    "mmmu-dev",
    "mmtbench",
    "mmcr",
    "mme-realworld-lite",
)

__all__ = ["BENCHMARKS", "NAMES", "Benchmark", "Loaded", "find", "load"]


def __getattr__(name: str) -> object:
    """Import the modules at first use, so that `tpru --help` shows `NAMES` without pyarrow."""
    if name == "BENCHMARKS":
        modules = {known: import_module(f"{__name__}.{known.replace('-', '_')}") for known in NAMES}
        value: object = {known: module.BENCHMARK for known, module in modules.items()}
    elif name in __all__:
        value = getattr(import_module(f"{__name__}.base"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def find(names: str) -> list[Benchmark]:
    """The benchmarks named in a comma-separated list. Raises ValueError for an unknown name or none."""
    from tpru_verl.eval.benchmarks import BENCHMARKS

    wanted = [name.strip().lower().replace("_", "-") for name in names.split(",") if name.strip()]
    unknown = [repr(name) for name in wanted if name not in NAMES]
    if unknown or not wanted:
        found = unknown[0] if unknown else "no name"
        raise ValueError(f"--bench: found {found}, expected one or more of {', '.join(NAMES)}")
    return [BENCHMARKS[name] for name in dict.fromkeys(wanted)]
