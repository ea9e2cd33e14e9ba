"""Programs that the demo runs: watched, ended with all their descendants, measured, asked why they failed."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Protocol

import psutil


class Tick(Protocol):
    """What is shown while a program runs."""

    def __enter__(self) -> object: ...
    def __exit__(self, *_: object) -> None: ...
    def __call__(self) -> None: ...


def supervise(command: Sequence[str], environment: dict[str, str], log: IO[str], tick: Tick | None) -> int:
    """Run to the end, calling `tick` each second, and return the exit code.

    On Ctrl-C or an error here the whole tree is ended: Ray and vLLM outlive a killed parent.
    """
    with subprocess.Popen(
        command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            with tick or nullcontext():
                while True:
                    try:
                        return process.wait(timeout=1)
                    except subprocess.TimeoutExpired:
                        if tick is not None:
                            tick()
        finally:
            end_tree(process.pid)


def end_tree(pid: int, grace: float = 15.0) -> None:
    """Ask a process to stop as Ctrl-C does, then end whatever is left of it and its descendants."""
    try:
        root = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    tree = [root, *root.children(recursive=True)]
    if root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
        root.send_signal(signal.SIGINT)
        psutil.wait_procs([root], timeout=grace)
    for process in tree:
        if process.is_running():
            process.kill()
    psutil.wait_procs(tree, timeout=grace)


class Memory(threading.Thread):
    """Peak growth of the machine's used memory, in GiB: Ray's processes share pages, so a sum would lie."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self._base = psutil.virtual_memory().used
        self.peak_gib = 0.0

    def __enter__(self) -> Memory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def run(self) -> None:
        while not self._ended.wait(1):
            self.peak_gib = max(self.peak_gib, (psutil.virtual_memory().used - self._base) / 2**30)


def last_error(log: Path, offset: int) -> str:
    """The last line that names an exception: tracebacks of Ray repeat themselves, the cause comes last."""
    with log.open(errors="replace") as file:
        file.seek(offset)
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in file]
    named = [line for line in lines if re.match(r"(\([^)]*\) )?[\w.]*(Error|Exception|Interrupt)\b", line)]
    return named[-1] if named else (lines[-1] if lines else "the process said nothing")
