"""What the tests of all modules share."""

import os
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["support.builds", "support.commands", "support.tiny_models"]

# Before torch and Ray are imported anywhere: tests must be quiet guests on a small machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# veRL takes its platform once a process; the tests have no accelerator to offer.
os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray gives its workers nice 15: beside tests that fill all cores, a trainer would hardly go on.
os.environ.setdefault("RAY_worker_niceness", "0")


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


# They start Ray or other frameworks. They begin first, so that all others run beside them.
LONGEST = ("test_end_to_end.py", "test_frameworks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True, tryfirst=True)  # without pytest-xdist there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each file is the work of one process, and each environment of another framework by itself."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrEnvironment(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "test_frameworks.py::" in nodeid else super()._split_scope(nodeid)

    return ByFileOrEnvironment(config, log)
