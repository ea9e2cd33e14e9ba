"""The process between `tpru train` and the program that trains. It ends all that the program has started.

    python -m tpru_verl.launch.guard COMMAND...

Ray and vLLM start processes that outlive their parent, in sessions of their own. On Linux the guard adopts
them, so that it knows each one. It ends them once the program has ended. It asks the program to end on a
signal, and when its own standard input closes: whoever started it holds the other end, so even a `kill -9` of
`tpru train` ends the whole run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

GRACE = 30.0  # seconds that the program has to end after a signal, before it is killed
# Seconds that its processes have to end by themselves once it has: a dead worker ends the run within 10 s.
OUTLIVES = 3.0
DIES = 10.0  # seconds that the system may take to end a process that was killed
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Python's names: memory that processes share, and semaphores where joblib was imported.
SHARED = ("psm_*", "sem.loky-*")
BETWEEN_LOOKS = 1.0  # seconds
_POLL = 0.1  # seconds
_PR_SET_CHILD_SUBREAPER = 36


def guard(command: list[str]) -> int:
    """Run `command` to the end, then end what it left; returns its exit code, 128 + n after signal n."""
    _adopt_orphans()
    started = time.time()
    end_by = float("inf")
    program = 0

    def forward(number: int, _: object) -> None:
        nonlocal end_by
        if not program:
            sys.exit(128 + number)
        with suppress(ProcessLookupError):
            os.kill(program, number)
        if number in ENDING:
            # A second Ctrl-C does not wait.
            end_by = min(end_by, time.monotonic()) if end_by < float("inf") else time.monotonic() + GRACE

    for number in FORWARDED:
        signal.signal(number, forward)
    no_input = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    lifeline = os.dup(0)
    program = os.posix_spawnp(
        command[0], command, os.environ, file_actions=[no_input], setsigdef=[signal.SIGPIPE]
    )
    threading.Thread(target=_end_with_starter, args=(lifeline,), daemon=True).start()
    while (code := _exit_code(program)) is None:
        if time.monotonic() > end_by:
            with suppress(ProcessLookupError):
                os.kill(program, signal.SIGKILL)
        time.sleep(_POLL)
    _end_descendants(min(end_by, time.monotonic() + OUTLIVES))
    forget_shared_memory(started)
    return 128 - code if code < 0 else code


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_with_starter(lifeline: int) -> None:
    while os.read(lifeline, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _exit_code(program: int) -> int | None:
    """The exit code of `program`, None while it runs. Takes ended children off the table of processes."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == program:
                return os.waitstatus_to_exitcode(ended[1])
    return None


def _end_descendants(kill_at: float) -> None:
    """Wait until none is left; from `kill_at` (of the monotonic clock) on, kill them."""
    import psutil

    give_up_at = kill_at + DIES  # the system may be unable to end a process that waits for a disk
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < give_up_at:
        if time.monotonic() > kill_at:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        time.sleep(_POLL)
        _exit_code(0)


def forget_shared_memory(since: float, folder: Path = Path("/dev/shm")) -> None:
    """Remove what this user's processes have left there since a time: vLLM's queues stay when it is killed.

    A file goes that has one of the names `SHARED` and that no process has in use, now and a second later:
    somebody else may have made it just now.
    """
    first = _unused(since, folder)
    if first:
        time.sleep(BETWEEN_LOOKS)
        for file in first & _unused(since, folder):
            file.unlink(missing_ok=True)


def _unused(since: float, folder: Path) -> set[Path]:
    found = {}
    for file in (each for name in SHARED for each in folder.glob(name)):
        with suppress(OSError):
            about = file.stat()
            if about.st_uid == os.getuid() and about.st_mtime > since:
                found[str(about.st_ino)] = file
    for maps in Path("/proc").glob("[0-9]*/maps") if found else ():
        with suppress(OSError):  # it has ended, or is another user's
            for line in maps.read_text(errors="replace").splitlines():
                if (
                    str(folder) in line
                ):  # by the inode: a semaphore is mapped under the name that it had first
                    found.pop(line.split()[4], None)
    return set(found.values())


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
