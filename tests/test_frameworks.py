"""`tests/frameworks/test_NAME.py` run in the environment of `tests/frameworks/NAME.txt`.

The pins of the frameworks exclude each other's. `make test` makes an environment for each: the packages of
the list, without what they depend on, in front of the packages of `.venv`.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "frameworks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.txt")))
def test_in_its_own_environment(name: str) -> None:
    python = Path(sys.prefix, "frameworks", name, "bin", "python")
    if not python.exists():
        pytest.fail(f"{python} is not there; `make frameworks` makes it")
    command = [python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", FOLDER / f"test_{name}.py"]
    with tempfile.TemporaryDirectory(prefix="ray") as alone:  # or Ray would join one of another test
        environment = {**os.environ, "RAY_TMPDIR": alone}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    # A browser is no package of Python: where none is installed, its one test is left out.
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all("no browser is installed" in line for line in skipped), skipped
