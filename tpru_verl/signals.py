"""A command that is asked to end: its child processes end with it, and its exit code names the signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class SignalReceived(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised as Ctrl-C is; `exit_code` is 128 and the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def raised_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SignalReceived inside the block, so that `finally` can end child processes.

    The second signal ends the process as usual. A signal that is ignored, as under `nohup`, stays ignored.
    Outside the main thread, where Python forbids it, nothing changes.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[number])
        raise SignalReceived(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    main = threading.current_thread() is threading.main_thread()
    chosen = [number for number in numbers if main and before[number] == signal.SIG_DFL]
    for number in chosen:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number in chosen:
            signal.signal(number, before[number])
