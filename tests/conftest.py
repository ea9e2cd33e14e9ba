"""What the tests of all modules share."""

import os
from pathlib import Path

import pytest

pytest_plugins = ["support.builds", "support.commands", "support.tiny_models"]

# Before torch and Ray are imported anywhere: tests must be quiet guests on a small machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# veRL takes its platform once a process; the tests have no accelerator to offer.
os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def checkpoint(root: Path) -> Path:
    """The tiny model that ships with the package."""
    folder = root / "tpru_verl" / "demo" / "checkpoint"
    if not (folder / "config.json").exists():
        pytest.fail(f"{folder} holds no checkpoint; make it with python -m tpru_verl.demo.warm_start")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that all others run beside them."""
    longest = ("test_end_to_end.py", "test_frameworks.py")
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))
