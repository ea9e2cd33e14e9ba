"""`tpru train`: the run of a plan, watched: its output kept, signals handed on, its first error found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tpru_verl.launch.first_error import first_error
from tpru_verl.launch.guard import ENDING, FORWARDED
from tpru_verl.launch.plan import Plan
from tpru_verl.launch.progress import Progress
from tpru_verl.launch.resume import note_run
from tpru_verl.launch.reward_trial import try_reward
from tpru_verl.launch.stacks import dump_stacks


@dataclass(frozen=True)
class End:
    """How a command ended. `code`: its exit code, 128 + n after signal n, as a shell has it.

    `asked`: a signal to us asked it to end. `stalled`: why it was ended for its lack of progress, or "".
    """

    code: int
    asked: bool
    stalled: str


def check(plan: Plan) -> str:
    """Look at the machine and the data, and try the reward on real rows. Raises as they do.

    Returns one sentence about the reward.
    """
    plan.check()
    return str(try_reward(plan.settings))


def run(plan: Plan, log: Path, *, stall_timeout: float = 0.0) -> int:
    """Train to the end and return the exit code, 128 + n for a run that signal n ended.

    All output is passed on and kept in `log`. A run without progress (`launch.progress`) for `stall_timeout`
    seconds is ended, after the stacks of its processes were written beside the log; 0 waits for ever. Where
    a run fails, the first error of the log is printed on standard error.
    """
    note_run(plan.settings)
    end = watch(plan.command, plan.environment, log, stall_timeout=stall_timeout)
    if end.code and not end.asked:
        # An error before a hang seldom says why the run hangs: it is shown, but second.
        error = f"before: {first_error(log)}" if end.stalled else first_error(log)
        lines = [end.stalled, error, f"the whole log: {log}"]
        print("\n".join(f"tpru: {line}" for line in lines if line), file=sys.stderr)
    return end.code


def watch(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    echo: bool = True,
    stall_timeout: float = 0.0,
    each_second: Callable[[], None] | None = None,
) -> End:
    """Run `command` to its end with `environment` added to ours. Nothing that it started is left then.

    `echo`: pass its output on to our standard output, beside `log`. Call it from the main thread: SIGINT,
    SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 reach the command through us while it runs.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    guarded = [sys.executable, "-m", "tpru_verl.launch.guard", *command]
    whole = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as kept:
        # A session of its own: Ctrl-C of the terminal reaches it through us alone, and once.
        process = subprocess.Popen(
            guarded,
            env=whole,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        watched = _Watched(process, kept, echo)
        try:
            with watched.forwarding():
                watched.to_the_end(log, stall_timeout, each_second)
        finally:
            if process.stdin is not None:  # where we fail, this tells the guard to end all
                process.stdin.close()
            process.wait()
            watched.reader.join(timeout=5)
    code = process.returncode
    return End(128 - code if code < 0 else code, watched.asked, watched.stalled)


@dataclass
class _Watched:
    process: subprocess.Popen[bytes]
    kept: IO[bytes]
    echo: bool
    asked: bool = False
    stalled: str = ""
    _moved: float = field(default_factory=time.monotonic)  # when it last showed progress

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._pass_on, daemon=True)
        self.reader.start()

    def to_the_end(
        self, log: Path, stall_timeout: float, each_second: Callable[[], None] | None = None
    ) -> None:
        while self.process.poll() is None:
            still = time.monotonic() - self._moved
            if stall_timeout and still > stall_timeout and not (self.asked or self.stalled):
                said = dump_stacks(self.process.pid, log.with_suffix(".stacks.txt"))
                self.stalled = f"no progress for {still:.0f} s (--stall-timeout): the run was ended; {said}"
                self.process.send_signal(signal.SIGTERM)
            if each_second:
                each_second()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=1)

    def _pass_on(self) -> None:
        source = self.process.stdout
        progress = Progress()
        for chunk in iter(lambda: source.read1(65536), b""):  # type: ignore[union-attr]
            if progress.read(chunk):
                self._moved = time.monotonic()
            self.kept.write(chunk)
            self.kept.flush()
            if self.echo:
                with suppress(OSError, ValueError):  # whoever listened has gone, as in `tpru train | head`
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.buffer.flush()

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        def forward(number: int, _: object) -> None:
            if self.process.poll() is None:
                self.process.send_signal(number)
            self.asked = self.asked or number in ENDING

        before = {number: signal.signal(number, forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
