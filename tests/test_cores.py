"""Cores that this process may use: affinity, and the limits of cgroups of both versions."""

import os
from pathlib import Path

import pytest

from tpru_verl import cores


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 cores, and a folder in place of /sys/fs/cgroup."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    return tmp_path


def test_no_more_than_the_affinity_allows(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores.available_cores() == 64  # not one file of a cgroup
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert cores.available_cores() == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"job/step/cpu.max": "200000 100000"}, 2),
        ({"job/step/cpu.max": "150000 100000"}, 2),  # part of a core is one more process
        ({"job/step/cpu.max": "1000 100000"}, 1),
        ({"job/step/cpu.max": "max 100000"}, 64),
        ({"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),  # of the whole job
        ({"job/cpu.max": "300000 100000", "job/step/cpu.max": "800000 100000"}, 3),
        ({"cpu.max": "400000 100000"}, 4),  # a container shows its own limit at the root
        ({"cpu.max": "nonsense"}, 64),
    ],
)
def test_version_2(cgroups: Path, files: dict[str, str], expected: int) -> None:
    (cgroups / "own").write_text("0::/job/step\n")
    for name, text in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text + "\n")
    assert cores.available_cores() == expected


@pytest.mark.parametrize("mounted_at", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("folder", ["docker/1", "."])
@pytest.mark.parametrize(("quota", "expected"), [(250_000, 3), (-1, 64)])
def test_version_1(cgroups: Path, mounted_at: str, folder: str, quota: int, expected: int) -> None:
    (cgroups / "own").write_text("5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/x:y\n")
    limits = cgroups / mounted_at / folder
    limits.mkdir(parents=True)
    (limits / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (limits / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.available_cores() == expected
