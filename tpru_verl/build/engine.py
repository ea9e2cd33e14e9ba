"""Work on many tasks at once: by processes of this machine, or by Ray Data on a cluster.

Each task is a small object, its result a small object; what is large goes through files, which on a cluster
have to be on a disk that all machines see.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tpru_verl.data.work import in_order

ENGINES = ("processes", "ray")

Given = TypeVar("Given")
Made = TypeVar("Made")


def run(
    tasks: Sequence[Given], work: Callable[[Given], Made], *, title: str, engine: str, workers: int | None
) -> Iterator[Made]:
    """What `work`, a module's function, makes of each task, in the order of the tasks."""
    run_tasks = _with_ray if engine == "ray" else None
    yield from in_order(tasks, work, title=title, workers=workers, run=run_tasks)


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
