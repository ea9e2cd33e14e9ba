"""Work on many tasks at once: by processes of this machine, or by Ray Data on a cluster.

Each task is a small object, its result a small object; what is large goes through files, which on a cluster
have to be on a disk that all machines see.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from tpru_verl.data.work import Run, here, processes

Given = TypeVar("Given")
Made = TypeVar("Made")


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


def _with_ray(tasks: Sequence[Given], work: Callable[[Given], Made], workers: int) -> Iterator[Made]:
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
