"""The first error of a run's log: the cause, told from the errors that follow from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Ray and vLLM put the process in front of a line, and a logger its level:
# "(Worker pid=1) ERROR 11-22 10:00:00 [core.py:9] ".
_PROCESS = re.compile(r"\(([^()]*?(?:pid=\d+)[^()]*)\) ")
_LOGGER = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL):? .*?\] ?")
_EXCEPTION = re.compile(
    r"([A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Exit|Timeout|Died|Killed|OOM))\b(:|$)"
)
# Of Ray and vLLM, for the error or the death of another process: the next other exception is the cause.
_WRAPPERS = ("RayTaskError", "RayActorError", "ActorDiedError", "ActorUnavailableError", "EngineDeadError")
# Ray's words for an actor whose process ended without an exception; fields of it follow, a line each.
_DEATH = "The actor died unexpectedly before finishing this task"
_RAYLET = "Raylet is terminated. Termination is unexpected"
# Words of errors that do not say what happened: vLLM's "see above", where nothing is, and torch.save's on a
# full disk.
_FULL = "a file could not be written, as on a full disk"
_MEANINGS = {
    "EngineDeadError": "vLLM's engine died: killed, or out of memory",
    "iostream error": _FULL,
    "unexpected pos": _FULL,
}
_FIELD = re.compile(r"\s+(class_name|pid): (\S+)")


@dataclass
class _LoggedError:
    line: int
    process: str  # as it stands in front of the line, "" for the driver
    text: str
    wrapper: bool
    died: dict[str, str] = field(default_factory=dict)  # class_name and pid of an actor that died

    def __str__(self) -> str:
        where = f"{self.process + ', ' if self.process else ''}line {self.line} of the log"
        for word, meaning in _MEANINGS.items():
            if word in self.text:
                return f"{meaning} ({where})"
        if "class_name" not in self.died:
            return f"{self.text} ({where})"
        name, pid = self.died["class_name"].rpartition(".")[2], self.died.get("pid", "unknown")
        return f"{name} (pid {pid}) died without an error of its own: killed, or out of memory ({where})"


def first_error(log: Path) -> str:
    """The cause of a run's end in one line, with the process that printed it and the line of the log.

    An error travels from a worker through Ray to the driver, and the last traceback names Ray alone. The
    first exception is the cause. A process that was killed raises none: then it is named, unless its own last
    words are in the log, which may come later than Ray's note of its death. So is Ray's raylet, which every
    process of Ray dies with. Without any exception: a line of our own, else the last line.
    """
    with log.open(encoding="utf-8", errors="replace", newline="\n") as file:
        lines = [part for line in file for part in [line.rstrip("\r\n").rsplit("\r", 1)[-1]]]
    for at, line in enumerate(lines, start=1):
        if _RAYLET in line:  # every other error follows from it, though it may be printed first
            return f"Ray's raylet died: killed, or out of memory (line {at} of the log)"
    ours = next((line for line in lines if line.startswith("tpru: ")), "")
    if ours:
        return ours.removeprefix("tpru: ")
    errors = list(_errors(lines))
    causes = [error for error in errors if not error.wrapper]
    for cause in causes[:1]:
        own = [e for e in causes if f"pid={cause.died.get('pid')}" in e.process.split() and not e.died]
        return str((own or [cause])[0])
    if errors:
        return str(errors[0])
    last = next((line for line in reversed(lines) if line.strip()), "the run printed nothing")
    return _COLOUR.sub("", last).strip()


def _errors(lines: list[str]) -> Iterator[_LoggedError]:
    inside: set[str] = set()  # processes in the middle of a traceback
    for at, raw in enumerate(lines):
        process, level, line = _parted(raw)
        if line.startswith(("Traceback (most recent call last)", "ray::")):
            if level not in ("WARNING", "INFO", "DEBUG"):  # told, and the program went on
                inside.add(process)
            continue
        match = _EXCEPTION.match(line)
        if match is None or not (process in inside or match[2] in _WRAPPERS):
            continue
        died = dict(_fields(lines[at + 1 : at + 40], process)) if _DEATH in line else {}
        wrapper = match[2] in _WRAPPERS and not died
        # What follows a wrapper is the error that it wraps.
        (inside.add if wrapper else inside.discard)(process)
        yield _LoggedError(at + 1, process, line.strip(), wrapper, died)


def _fields(lines: list[str], process: str) -> Iterator[tuple[str, str]]:
    """Class and process id of a dead actor, from the lines of `process` that follow Ray's note."""
    for raw in lines:
        owner, _, line = _parted(raw)
        if owner == process:
            match = _FIELD.match(line)
            if match is None and not line.startswith((" ", "\t")):
                return
            if match is not None:
                yield match[1], match[2]


def _parted(raw: str) -> tuple[str, str, str]:
    """Process, level of a logger, and the rest of a line."""
    line = _COLOUR.sub("", raw).rstrip()
    process = level = ""
    if match := _PROCESS.match(line):
        process, line = match[1], line[match.end() :]
    if match := _LOGGER.match(line):
        level, line = match[1], line[match.end() :]
    return process, level, line
