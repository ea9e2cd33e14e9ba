"""Work on the rows of a source, unit by unit, in as many processes as there are cores."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tpru_verl.data.source import Form, Keys, Part, Unit, form_of, parts_of, units_of

Result = TypeVar("Result")
console = Console(stderr=True)  # stdout is for results


@dataclass(frozen=True)
class Source:
    """A source that was opened: what it is called, its parts, how they are read, and in which pieces."""

    name: str
    revision: str | None  # the commit, for a data set of the Hub
    parts: list[Part]
    forms: list[Form]
    units: list[Unit]

    @classmethod
    def open(cls, name: str, *, revision: str | None = None, keys: Keys | None = None) -> Source:
        """Look at schemas, and at no row of parquet. Raises ValueError or FileNotFoundError, in one line."""
        parts = parts_of(name, revision=revision)
        forms = [form_of(part, keys or Keys()) for part in parts]
        units = [unit for part in parts for unit in units_of(part)]
        if not sum(1 if unit.rows is None else unit.rows for unit in units):
            raise ValueError(f"{name}: found 0 rows, expected at least 1")
        return cls(name, parts[0].commit or revision, parts, forms, units)

    @property
    def rows(self) -> int | None:
        """How many rows there are, where that is known before reading them."""
        counts = [unit.rows for unit in self.units]
        return None if None in counts else sum(count for count in counts if count is not None)

    def form(self, unit: Unit) -> Form:
        return self.forms[self.parts.index(unit.part)]


def each_unit(
    source: Source, work: Callable[[Unit, Form], Result], *, title: str, workers: int | None = None
) -> Iterator[tuple[Unit, Result]]:
    """Yield what `work` makes of each unit, in order, with a progress bar on stderr.

    At most two units a worker are under way, so memory does not grow with the source. `work` has to be a
    module's function, or a `functools.partial` of one. An exception of `work` ends it all.
    """
    workers = min(workers or os.cpu_count() or 1, len(source.units))
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(title, total=source.rows)
        run = _here if workers == 1 else _in_processes
        for unit, result in run(source, work, workers):
            progress.update(bar, advance=unit.rows or 0)
            yield unit, result


def _here(
    source: Source, work: Callable[[Unit, Form], Result], workers: int
) -> Iterator[tuple[Unit, Result]]:
    for unit in source.units:
        yield unit, work(unit, source.form(unit))


def _in_processes(
    source: Source, work: Callable[[Unit, Form], Result], workers: int
) -> Iterator[tuple[Unit, Result]]:
    # A fork of a process with Arrow's threads may hang; Ctrl-C is for this process to answer.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    waiting: deque[tuple[Unit, Future[Result]]] = deque()
    try:
        for unit in source.units:
            if len(waiting) == 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
            waiting.append((unit, pool.submit(work, unit, source.form(unit))))
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
