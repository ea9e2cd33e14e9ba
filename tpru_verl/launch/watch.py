"""A command run to its end and watched: its output kept, signals handed on, ended where it hangs."""

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
from datetime import datetime
from pathlib import Path
from typing import IO, Literal

from tpru_verl.launch.guard import ENDING, FORWARDED
from tpru_verl.launch.progress import Progress
from tpru_verl.launch.stacks import dump_stacks
from tpru_verl.redaction import keys_of_environment, without

# What a command was just made to do: save and end, end, or end at once.
Ending = Literal["save", "end", "kill"]
# Seconds that a trainer has to end after its main function has failed: Ray, where it is broken itself, takes
# ten and more. The last words of other processes come a second later than the trainer's.
FAILED = 2.0


@dataclass(frozen=True)
class End:
    """How a command ended. `code`: its exit code, 128 + n after signal n, as a shell has it.

    `asked`: the signal to us that asked it to end, 0 for none. `reason`: why we ended it, or "".
    """

    code: int
    asked: int
    reason: str


@dataclass(frozen=True)
class Stop:
    """How a trainer is asked to save and end (`plugin.checkpoints`): it makes `file` once it can be asked.

    Something is written into it then, and `grace` seconds later the trainer gets SIGTERM.
    """

    file: Path
    grace: float


def watch(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    echo: bool = True,
    stall_timeout: float = 0.0,
    stacks: Path | None = None,
    each_second: Callable[[], str | None] | None = None,
    stop: Stop | None = None,
    on_end: Callable[[Ending], None] | None = None,
    secrets: Sequence[str] = (),
) -> End:
    """Run `command` to its end with `environment` added to ours. Nothing that it started is left then.

    `echo`: pass its output on to our standard output, beside `log`. `stacks`: the folder for those of a run
    that stalls; without one they lie beside the log. `each_second`: called so often; the command is ended for
    the reason that it returns. `stop`: SIGTERM to us, and such a reason, ask the command in this way first; a
    second signal does not wait. `on_end`: told when the command is made to end, perhaps inside of a signal's
    handler. `secrets` are cut out of the output, as the keys of the environment are.
    Call it from the main thread: SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 reach the command through us
    while it runs.
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
        watched = _Watched(process, kept, echo, stop, on_end, secrets)
        try:
            with watched.forwarding():
                watched.to_the_end(stacks or log.parent, stall_timeout, each_second)
        finally:
            if process.stdin is not None:  # where we fail, this tells the guard to end all
                process.stdin.close()
            process.wait()
            watched.reader.join(timeout=5)
    code = 1 if watched.hurried else process.returncode
    return End(128 - code if code < 0 else code, watched.asked, watched.reason)


@dataclass
class _Watched:
    process: subprocess.Popen[bytes]
    kept: IO[bytes]
    echo: bool
    stop: Stop | None = None
    on_end: Callable[[Ending], None] | None = None
    secrets: Sequence[str] = ()
    asked: int = 0
    reason: str = ""
    hurried: bool = False  # it had failed, and did not end by itself
    _sent: int = 0  # signals that end it; `guard` does not wait after the second one
    _failed_at: float = float("inf")
    _end_by: float = float("inf")  # when SIGTERM follows the request to stop
    _moved: float = field(default_factory=time.monotonic)  # when it last showed progress

    def __post_init__(self) -> None:
        self._secrets = [*self.secrets, *keys_of_environment()]
        self.reader = threading.Thread(target=self._pass_on, daemon=True)
        self.reader.start()

    def to_the_end(
        self, stacks: Path, stall_timeout: float, each_second: Callable[[], str | None] | None = None
    ) -> None:
        while self.process.poll() is None:
            still = time.monotonic() - self._moved
            if stall_timeout and still > stall_timeout and not (self.asked or self.reason):
                said = dump_stacks(self.process.pid, stacks / f"{datetime.now():%Y%m%d-%H%M%S}.txt")
                self.reason = f"no progress for {still:.0f} s (--stall-timeout): the run was ended; {said}"
                self._send(signal.SIGTERM)
            if each_second and (why := each_second()) and not (self.asked or self.reason):
                self.reason = why
                self._end()
            if time.monotonic() > self._end_by:
                self._end_by = float("inf")
                self._send(signal.SIGTERM)
            if time.monotonic() > self._failed_at + FAILED:
                self.hurried, self._failed_at = True, time.monotonic() + 0.5 - FAILED
                self._send(
                    signal.SIGTERM
                )  # half a second later the second one, which does not wait (`guard`)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=1)

    def _send(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            if number in ENDING:
                self._sent += 1
                self._tell("end" if self._sent == 1 else "kill")

    def _tell(self, how: Ending) -> None:
        if self.on_end and not self.hurried:  # one that has failed is about to end by itself
            self.on_end(how)

    def _end(self) -> None:
        """Ask the command to save and end, where it can be asked; else end it."""
        if self.stop and self.stop.file.exists() and self._end_by == float("inf"):
            self.stop.file.write_text("stop\n")
            self._end_by = time.monotonic() + self.stop.grace
            self._tell("save")
        else:
            self._send(signal.SIGTERM)

    def _pass_on(self) -> None:
        source = self.process.stdout
        progress, rest = Progress(), b""
        for chunk in iter(lambda: source.read1(65536), b""):  # type: ignore[union-attr]
            if progress.read(chunk):
                self._moved = time.monotonic()
            if progress.failed:
                self._failed_at = min(self._failed_at, time.monotonic())
            lines, end, rest = (rest + chunk).rpartition(b"\n")  # a key may lie in two chunks
            self._keep(lines + end)
        self._keep(rest)

    def _keep(self, text: bytes) -> None:
        """Write text to the log, without keys: veRL prints its whole configuration."""
        text = without(text.decode(errors="surrogateescape"), self._secrets).encode(errors="surrogateescape")
        self.kept.write(text)
        self.kept.flush()
        if self.echo:
            with suppress(OSError, ValueError):  # whoever listened has gone, as in `tpru train | head`
                sys.stdout.buffer.write(text)
                sys.stdout.buffer.flush()

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        def forward(number: int, _: object) -> None:
            if number == signal.SIGTERM and not self.asked:
                self._end()
            else:
                self._send(number)
            if number in ENDING:
                self.asked = self.asked or number

        before = {number: signal.signal(number, forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
