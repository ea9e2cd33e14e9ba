"""The benchmarks of the paper, one file each."""

from tpru_verl.eval.benchmarks import (
    blink,
    lego_puzzles,
    mmcr,
    mme_realworld_lite,
    mmmu_dev,
    mmstar,
    mmtbench,
    muirbench,
    realworldqa,
    tpru_test,
)
from tpru_verl.eval.benchmarks.base import Benchmark, Loaded, load

_MODULES = (
    tpru_test,
    muirbench,
    lego_puzzles,
    blink,
    mmstar,
    realworldqa,
    mmmu_dev,
    mmtbench,
    mmcr,
    mme_realworld_lite,
)
BENCHMARKS: dict[str, Benchmark] = {module.BENCHMARK.name: module.BENCHMARK for module in _MODULES}

__all__ = ["BENCHMARKS", "Benchmark", "Loaded", "find", "load"]


def find(names: str) -> list[Benchmark]:
    """The benchmarks that a comma-separated list names. Raises ValueError for one that is unknown."""
    wanted = [name.strip().lower().replace("_", "-") for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in BENCHMARKS]:
        raise ValueError(f"--bench: found {unknown[0]!r}, expected one or more of {', '.join(BENCHMARKS)}")
    if not wanted:
        raise ValueError(f"--bench: found nothing, expected one or more of {', '.join(BENCHMARKS)}")
    return [BENCHMARKS[name] for name in dict.fromkeys(wanted)]
