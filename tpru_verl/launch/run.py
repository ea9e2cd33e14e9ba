"""`tpru train`: the run of a plan, watched: its output kept, its signals handed on, its first error found."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tpru_verl.launch.plan import Plan
from tpru_verl.launch.reward_trial import try_reward

if TYPE_CHECKING:
    import psutil

GRACE = 30.0  # seconds that a run has to end after a signal, before its processes are killed
OUTLIVES = 10.0  # seconds that its processes have to end by themselves once the driver has
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# What Ray and vLLM put in front of a line, and what a logger does: "(Worker pid=1) ERROR 11-22 ... ] ".
_PROCESS = re.compile(r"\(([^()]*?(?:pid=\d+)[^()]*)\) ")
_LOGGER = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL):? .*?\] ?")
_EXCEPTION = re.compile(
    r"([A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Exit|Timeout|Died|Killed|OOM))\b(:|$)"
)
# Ray's own, which wrap the error of a worker; they count where nothing else is found.
_WRAPPERS = ("RayTaskError", "RayActorError", "ActorDiedError", "WorkerCrashedError", "OutOfMemoryError")

# Processes of Ray that hold no work of the run.
_SERVICES = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


def check(plan: Plan) -> str:
    """Look at the machine, and try the reward on real rows. Raises as they do; returns what it said."""
    plan.check()
    return str(try_reward(plan.settings))


def run(plan: Plan, log: Path, *, stall_timeout: float = 0.0) -> int:
    """Run to the end and return the exit code; 128 + n for one that signal n ended, as a shell has it.

    All that it prints is passed on and kept in `log`. A run that prints nothing for `stall_timeout` seconds
    (0: never mind) is ended, after the stacks of its processes were written beside the log. Where it fails
    the first error of the log is printed on standard error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **plan.environment, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as kept:
        watch = _Watch(plan.command, environment, kept)
        code = watch.to_the_end(log, stall_timeout)
    if code and not watch.asked_to_end:
        # What a run that hangs has raised before says nothing of why it hangs, as a rule: shown, but second.
        error = f"before: {first_error(log)}" if watch.stalled else first_error(log)
        lines = [watch.stalled, error, f"the whole log: {log}"]
        print("\n".join(f"tpru: {line}" for line in lines if line), file=sys.stderr)
    return 128 - code if code < 0 else code


@dataclass
class _Watch:
    """One run of a command, with a session of its own: Ctrl-C reaches it through us alone, and once."""

    command: Sequence[str]
    environment: Mapping[str, str]
    kept: IO[bytes]
    asked_to_end: bool = False
    stalled: str = ""  # what was said when it was ended for its silence
    _heard: float = field(default_factory=time.monotonic)  # when it last printed something
    _end_by: float = float("inf")

    def to_the_end(self, log: Path, stall_timeout: float) -> int:

        process = subprocess.Popen(
            self.command,
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        known: dict[int, psutil.Process] = {}
        reader = threading.Thread(target=self._pass_on, args=(process.stdout,), daemon=True)
        reader.start()
        with self._forwarding(process):
            while process.poll() is None:
                # Remembered while they have a parent: Ray's processes outlive the driver that started them.
                known |= {p.pid: p for p in _descendants(process.pid)}
                silent = time.monotonic() - self._heard
                if stall_timeout and silent > stall_timeout and not (self.asked_to_end or self.stalled):
                    self._end_stalled(process, list(known.values()), log, silent)
                if time.monotonic() > self._end_by:
                    process.kill()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
        _end(list(known.values()))
        reader.join(timeout=5)
        return process.returncode

    def _pass_on(self, source: IO[bytes]) -> None:
        for chunk in iter(lambda: source.read1(65536), b""):  # type: ignore[attr-defined]
            self._heard = time.monotonic()
            self.kept.write(chunk)
            self.kept.flush()
            with suppress(OSError, ValueError):  # whoever listened has gone, as in `tpru train | head`
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()

    @contextmanager
    def _forwarding(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        def forward(number: int, _: object) -> None:
            if process.poll() is None:
                process.send_signal(number)
            if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # A second Ctrl-C does not wait.
                self._end_by = time.monotonic() + (0 if self.asked_to_end else GRACE)
                self.asked_to_end = True

        before = {number: signal.signal(number, forward) for number in _FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end_stalled(
        self, process: subprocess.Popen[bytes], known: Sequence[psutil.Process], log: Path, silent: float
    ) -> None:
        import psutil

        alive = [p for p in [psutil.Process(process.pid), *known] if p.is_running()]
        said = dump_stacks(alive, log.with_suffix(".stacks.txt"))
        self.stalled = f"no output for {silent:.0f} s (--stall-timeout): the run was ended; {said}"
        process.send_signal(signal.SIGTERM)
        self._end_by = time.monotonic() + GRACE


def _descendants(pid: int) -> list[psutil.Process]:
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _end(processes: Sequence[psutil.Process]) -> None:
    """Kill what is left of a run after Ray had time to end by itself."""
    import psutil

    _, left = psutil.wait_procs([p for p in processes if p.is_running()], timeout=OUTLIVES)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=OUTLIVES)


def dump_stacks(processes: Sequence[psutil.Process], out: Path) -> str:
    """Write the stacks of the first process, the driver, and of workers among the others to `out`, by py-spy;
    returns in words what was done."""
    import psutil

    tool = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if tool is None:
        return "no stacks: found no py-spy, expected it on PATH (pip install py-spy)"
    dumped = []
    for process in processes:
        with suppress(psutil.Error):  # it has ended meanwhile, or is another user's
            title = " ".join(filter(None, process.cmdline())) or process.name()
            worker = title.startswith(("ray::", "VLLM")) and not title.startswith(_SERVICES)
            if worker or process is processes[0]:
                state = process.status()
                dumped.append(f"== {title[:200]} (pid {process.pid}, {state})\n{_stack(tool, process.pid)}\n")
    out.write_text("".join(dumped), encoding="utf-8")
    return f"stacks of {len(dumped)} processes are in {out}"


def _stack(tool: str, pid: int) -> str:
    # Without pausing it: a process that is stopped already would never answer.
    command = [tool, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "py-spy: no answer in 20 s"
    return done.stdout if done.returncode == 0 else (done.stderr.strip() or "py-spy said nothing")


def first_error(log: Path) -> str:
    """The first exception of a log that is not a wrapper of Ray's, with its process and line.

    An error travels from a worker through Ray to the driver, whose last traceback names Ray alone: what was
    raised first is the cause. Where no traceback is found: our own line, else the last one.
    """
    wrapped, last = "", ""
    inside: set[str] = set()  # processes whose lines are those of a traceback
    for number, raw in enumerate(log.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        process, level, line = _parted(raw)
        if line.strip():
            last = line.strip()
        if line.startswith("tpru: "):
            return line.removeprefix("tpru: ")
        if line.startswith("Traceback (most recent call last)") or line.startswith("ray::"):
            if level not in ("WARNING", "INFO", "DEBUG"):  # told and gone on from
                inside.add(process)
            continue
        match = _EXCEPTION.match(line)
        if match and (process in inside or match[2] in _WRAPPERS):
            inside.discard(process)
            where = f" ({process + ', ' if process else ''}line {number} of the log)"
            if match[2] not in _WRAPPERS:
                return line.strip() + where
            inside.add(process)  # what follows is what it wraps
            wrapped = wrapped or line.strip() + where
    return wrapped or last or "the run said nothing"


def _parted(raw: str) -> tuple[str, str, str]:
    """Process, level of a logger, and the rest of a line."""
    line = _COLOUR.sub("", raw).rstrip()
    process = level = ""
    if match := _PROCESS.match(line):
        process, line = match[1], line[match.end() :]
    if match := _LOGGER.match(line):
        level, line = match[1], line[match.end() :]
    return process, level, line
