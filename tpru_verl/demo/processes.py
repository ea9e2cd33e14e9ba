"""The memory that a run takes, and the end of a process with all its descendants."""

from __future__ import annotations

import signal
import threading

import psutil


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
