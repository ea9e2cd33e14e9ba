"""Works on many tasks at once, such as the units of a source: in processes, or by Ray Data on a cluster.

Each task is a small object, and so is its result. Large data goes through files. On a cluster these files
have to be on a disk that all machines see.
"""

from __future__ import annotations

import logging
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Protocol, TypeVar

from tpru_verl.cores import available_cores
from tpru_verl.data.source.forms import Form, Source, Unit
from tpru_verl.terminal import progress_bar

Given = TypeVar("Given")
Result = TypeVar("Result")


class Run(Protocol):
    """Has the work done on tasks, by so many workers, and yields the results in order."""

    def __call__(
        self, tasks: Sequence[Given], work: Callable[[Given], Result], workers: int, /
    ) -> Iterator[Result]: ...


def each_unit(
    source: Source, work: Callable[[Unit, Form], Result], *, title: str, workers: int | None = None
) -> Iterator[tuple[Unit, Result]]:
    """Yield what `work` makes of each unit, in order, with a progress bar on stderr; else as `in_order`."""
    tasks = [(unit, source.form(unit)) for unit in source.units]
    sizes = [unit.rows or 0 for unit in source.units]
    results = in_order(tasks, partial(_apply, work), title=title, workers=workers, sizes=sizes)
    yield from zip(source.units, results, strict=True)


def _apply(work: Callable[[Unit, Form], Result], task: tuple[Unit, Form]) -> Result:
    return work(*task)


def in_order(
    tasks: Sequence[Given],
    work: Callable[[Given], Result],
    *,
    title: str,
    workers: int | None = None,
    sizes: Sequence[int] | None = None,
    run: Run | None = None,
) -> Iterator[Result]:
    """Yield what `work` makes of each task, in order, with a progress bar on stderr that counts `sizes`.

    At most two tasks a worker are under way, so memory does not grow with their number. `work` has to be a
    module's function, or a `functools.partial` of one. An exception of `work` ends it all. `run` is another
    way to have the work done than by processes.
    """
    workers = max(1, min(workers or available_cores(), len(tasks)))
    with progress_bar() as progress:
        sizes = sizes or [1] * len(tasks)
        bar = progress.add_task(title, total=sum(sizes) or None)
        run = run or (here if workers == 1 else _in_processes)
        for size, result in zip(sizes, run(tasks, work, workers), strict=True):
            progress.update(bar, advance=size)
            yield result


def here(tasks: Sequence[Given], work: Callable[[Given], Result], workers: int) -> Iterator[Result]:
    """A `run` without processes."""
    yield from map(work, tasks)


def _in_processes(tasks: Sequence[Given], work: Callable[[Given], Result], workers: int) -> Iterator[Result]:
    with processes(workers) as run:
        yield from run(tasks, work, workers)


@contextmanager
def processes(workers: int | None) -> Iterator[Run]:
    """A `run` for `in_order` whose processes stay until the end: each spends a second on its imports."""
    # A fork of a process with Arrow's threads may hang; Ctrl-C is for this process to answer.
    interrupts = (signal.signal, (signal.SIGINT, signal.SIG_IGN))
    pool = ProcessPoolExecutor(workers or available_cores(), get_context("spawn"), *interrupts)

    def run(tasks: Sequence[Given], work: Callable[[Given], Result], workers: int) -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for task in tasks:
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, task))
        while waiting:
            yield waiting.popleft().result()

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def opened(engine: str, workers: int | None) -> Iterator[Run]:
    """How all stages of a build have their work done: a `run` for `in_order`."""
    if engine == "ray":
        yield _with_ray
    elif workers == 1:
        yield here
    else:
        with processes(workers) as run:
            yield run


def _with_ray(tasks: Sequence[Given], work: Callable[[Given], Result], workers: int) -> Iterator[Result]:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError('--engine ray needs `pip install "ray[data]"`') from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # What is pickled is our own, and goes between our own processes.
    given = [{"task": pickle.dumps(task)} for task in tasks]
    made = ray.data.from_items(given, override_num_blocks=len(given)).map(
        lambda row: {"made": pickle.dumps(work(pickle.loads(row["task"])))}, concurrency=workers
    )
    for row in made.iter_rows():
        yield pickle.loads(row["made"])
