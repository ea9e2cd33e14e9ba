"""Nothing of a run outlives it, however `tpru train` itself ends."""

import os
import signal
import subprocess
import sys
import time
from _multiprocessing import SemLock
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path

import psutil
import pytest

from tpru_verl.launch import guard

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


ORPHAN = """
import os, signal
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(create=True, size=1000)
resource_tracker.unregister(memory._name, "shared_memory")
print(memory.name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="Linux")
def test_shared_memory_of_a_killed_process_goes_and_of_a_living_one_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    since = time.time() - 1
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, check=False)
    orphan, semaphore = Path("/dev/shm") / done.stdout.strip(), Path(f"/dev/shm/sem.loky-{os.getpid()}-test")
    assert orphan.is_file()
    semaphore.touch()
    living = shared_memory.SharedMemory(create=True, size=1000)
    # As multiprocessing makes one for processes that it spawns.
    lock = SemLock(0, 1, 1, f"/loky-{os.getpid()}-living", False)
    locked = Path(f"/dev/shm/sem.loky-{os.getpid()}-living")
    made: list[shared_memory.SharedMemory] = []

    def sleep(seconds: float) -> None:
        made.append(shared_memory.SharedMemory(orphan.name))  # somebody begins to use it between the looks

    try:
        guard.forget_shared_memory(time.time() + 9)
        assert orphan.exists()  # it was there before
        monkeypatch.setattr(guard.time, "sleep", sleep)
        guard.forget_shared_memory(since)
        assert orphan.exists()
        assert not semaphore.exists()
        made.pop().close()
        monkeypatch.undo()
        guard.forget_shared_memory(since)
        assert not orphan.exists()
        assert (Path("/dev/shm") / living.name).exists()
        assert locked.exists()
    finally:
        del lock
        living.close()
        living.unlink()
        for file in (orphan, semaphore, locked):
            file.unlink(missing_ok=True)
