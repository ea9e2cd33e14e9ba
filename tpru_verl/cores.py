"""How many CPU cores this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Cores of this process, at least 1: those of its affinity, fewer where a container or job allows less.

    `os.cpu_count` counts all of the machine, which starts 192 processes in a container of two cores.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas())]))


def _quotas() -> Iterator[float]:
    """Limits, in cores, of this process's cgroups and all that they lie in (cgroup v1 and v2)."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # 0::/job_1/step_0, or 4:cpu,cpuacct:/job_1/step_0
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root = _CGROUPS
        elif "cpu" in controllers.split(","):
            root = _CGROUPS / controllers if (_CGROUPS / controllers).is_dir() else _CGROUPS / "cpu"
        else:
            continue
        own = root / path.lstrip("/")
        # In a container the path may be that of the machine, which is not mounted: its root is.
        for folder in (own, *own.parents):
            if folder.is_relative_to(root):
                with suppress(OSError, ValueError):
                    yield _quota(folder)


def _quota(folder: Path) -> float:
    """Raises OSError or ValueError where the folder sets no limit."""
    if (maximum := folder / "cpu.max").exists():
        quota, period = maximum.read_text().split()
    else:
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    if float(quota) <= 0:
        raise ValueError("no limit")
    return float(quota) / float(period)  # "max" is no number either
