"""Works on many tasks at once, such as the units of a source: in processes, or by Ray Data on a cluster.

Each task is a small object, and so is its result. Large data goes through files. On a cluster these files
have to be on a disk that all machines see.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Protocol, TypeVar

from tpru_verl.cores import available_cores
from tpru_verl.data.source.forms import Form, Source, Unit
from tpru_verl.terminal import progress_bar

Given = TypeVar("Given")
Result = TypeVar("Result")


class Run(Protocol):
    """Does the work on all tasks with so many workers, and yields the results in order."""

    def __call__(
        self, tasks: Sequence[Given], work: Callable[[Given], Result], workers: int, /
    ) -> Iterator[Result]: ...


def each_unit(
    source: Source, work: Callable[[Unit, Form], Result], *, title: str, workers: int | None = None
) -> Iterator[tuple[Unit, Result]]:
    """Yield each unit with the result of `work` on it, as `in_order` does."""
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
    """Yield the result of `work` on each task, in order, with a progress bar on stderr that counts `sizes`.

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
    context = get_context("spawn")  # a fork of a process with Arrow's threads may hang
    theirs, ours = context.Pipe(duplex=False)
    with _signals_blocked():
        pool = ProcessPoolExecutor(workers or available_cores(), context, _end_with_parent, (theirs,))

    def run(tasks: Sequence[Given], work: Callable[[Given], Result], workers: int) -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for task in tasks:
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
            with _signals_blocked():
                waiting.append(pool.submit(work, task))
        while waiting:
            yield waiting.popleft().result()

    try:
        yield run
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, most often because memory ran out: use fewer --workers"
        ) from error
    except BaseException:
        ours.close()  # not after the tasks under way
        # A worker may end in the middle of a result. Its reader waits for the rest while this end is open.
        pool._result_queue._writer.close()  # pyright: ignore[reportAttributeAccessIssue]
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Have processes that start in the block never see signals that end a command.

    A terminal and Slurm send them to the workers, too. The parent answers them, here after the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(pipe: Connection) -> None:
    """In a worker: end as soon as the parent's end of the pipe closes.

    A parent that is killed closes it, too; without this its workers would wait for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows blocks no signals

    def wait() -> None:
        with suppress(EOFError, OSError):
            pipe.recv_bytes()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def opened(engine: str, workers: int | None) -> Iterator[Run]:
    """A `run` for `in_order`, which all stages of a build share."""
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
