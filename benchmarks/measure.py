"""The benchmarks share these parts: repeated measurements, memory of a program, Markdown tables."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import psutil

Result = TypeVar("Result")
Rows = list[list[str]]  # the first one is the header

SPREAD = ("lowest", "highest")  # headers of the two columns beside a median


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring, line by line."""
    keep_lines = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=keep_lines)


def in_turn(
    tasks: Mapping[str, Callable[[], Result]], repeats: int, *, warm_up: int = 0
) -> dict[str, list[Result]]:
    """Results of each task, in order; those of the first `warm_up` rounds are dropped.

    The tasks take turns, so that other work on the machine slows all of them.
    """
    found: dict[str, list[Result]] = {name: [] for name in tasks}
    for turn in range(warm_up + repeats):
        for name, task in tasks.items():
            result = task()
            if turn >= warm_up:
                found[name].append(result)
    return found


def spread(values: Sequence[float], form: str = ",.0f") -> list[str]:
    """Median, lowest and highest value in a format of `format()`."""
    return [format(value, form) for value in (median(values), min(values), max(values))]


def markdown(rows: Iterable[Iterable[object]], title: str = "") -> str:
    """A Markdown table; the first row is its header, the title a line above it."""
    header, *body = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *body)]
    return "\n".join([title, "", *lines] if title else lines)


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a process and of all its children: other work stretches it less than seconds."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def watched(command: Sequence[object]) -> tuple[float, float]:
    """Run a program. Returns its seconds and the peak memory of it and its children in GiB.

    Memory is what the processes hold themselves (RssAnon): the kernel can drop pages of mapped files.
    A program that fails ends the benchmark with the end of its standard error.
    """
    began, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as errors:
        process = psutil.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            peak = max(peak, sum(private_bytes(process).values()))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        if process.returncode:
            errors.seek(0)
            shown = " ".join(map(str, command))
            sys.exit(f"{shown}: ended with exit code {process.returncode}\n{errors.read()[-2000:]}")
    return seconds, peak / 2**30


def private_bytes(process: psutil.Process) -> dict[psutil.Process, int]:
    """What a process and each of its children hold themselves (RssAnon)."""
    found: dict[psutil.Process, int] = {}
    for each in [process, *process.children(recursive=True)]:
        try:
            status = Path(f"/proc/{each.pid}/status").read_text()
            found[each] = 1024 * int(status.partition("RssAnon:")[2].split(maxsplit=1)[0])
        except (psutil.Error, OSError, IndexError):  # it has just ended
            continue
    return found
