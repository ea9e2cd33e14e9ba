"""Nothing of a run outlives it, however `tpru train` itself ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

# A trainer as Ray and vLLM make one: it starts a process in a session of its own, whose parent then ends, so
# that nothing but its number leads to it.
TRAINER = """
import os, subprocess, sys, time
grandchild = "import os, time; open('grandchild', 'w').write(str(os.getpid())); time.sleep(300)"
command = [sys.executable, "-c", grandchild]
child = f"import subprocess; subprocess.Popen({command}, start_new_session=True)"
subprocess.run([sys.executable, "-c", child], start_new_session=True)
while not (os.path.exists("grandchild") and open("grandchild").read()):
    time.sleep(0.05)
open("trainer", "w").write(str(os.getpid()))
time.sleep(300)
"""
STARTER = """
import sys
from pathlib import Path
from tpru_verl.launch import watch
end = watch.watch([sys.executable, "trainer.py"], {}, Path("run.log"))
print(end)
sys.exit(end.code)
"""


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)],
)
def test_no_process_is_left_after(number: signal.Signals, code: int, tmp_path: Path, root: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER], cwd=tmp_path, env=environment, start_new_session=True
    )
    names = [tmp_path / "grandchild", tmp_path / "trainer"]
    assert until(lambda: all(name.exists() and name.read_text() for name in names), 60)
    pids = [int(name.read_text()) for name in names]
    assert not any(map(gone, pids))
    starter.send_signal(number)
    assert until(lambda: all(map(gone, pids)), 25)
    assert starter.wait(timeout=10) == code or (number == signal.SIGINT and starter.returncode == 1)
