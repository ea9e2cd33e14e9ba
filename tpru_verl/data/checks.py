"""The one judge of a row: what makes it unusable, and what a person should know about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tpru_verl.data.images import note_of, problem_of
from tpru_verl.data.source.rows import Row
from tpru_verl.sample import Task, parse_options, problems_of

_ALL_TASKS = ", ".join(task.value for task in Task)


def problems_of_row(row: Row, *, deep: bool = False) -> Iterator[str]:
    """What makes a row unusable, as "field: found ..., expected ..."."""
    if not isinstance(row.cells, list):
        yield f"images: found {type(row.cells).__name__}, expected a list of images"
        return
    yield from problems_of(row.problem, row.answer, len(row.cells))
    try:
        _ = row.task
    except ValueError:
        yield f"task: found {row.field('task')!r}, expected one of {_ALL_TASKS}"
    options = parse_options(row.problem) if isinstance(row.problem, str) else {}
    texts = Counter(text.casefold() for text in options.values() if text != "<image>")
    for text, times in texts.items():
        if times > 1:
            yield f"problem: found the option {text!r} {times} times, expected distinct options"
    try:
        images = row.views
    except ValueError as error:
        yield f"images: {error}"
        return
    for i, data in enumerate(images):
        if problem := problem_of(data, deep=deep):
            yield f"images[{i}]: {problem}"


def notes_of_row(row: Row, digests: Sequence[bytes]) -> Iterator[str]:
    """What a user should know about a sound row; `digests`: one of each image."""
    if row.task is None:
        yield "problem: found no sign of the task, expected one of the three; a column `task` settles it"
    elif problem := _images_of_task(row.task, parse_options(str(row.problem)), len(digests)):
        yield problem
    for i, data in enumerate(row.views):
        if note := note_of(data):
            yield f"images[{i}]: {note}"
    if repeated := len(digests) - len({*digests}):
        yield f"images: found {repeated} that repeat another one of the row, expected distinct images"


def _images_of_task(task: Task, options: dict[str, str], count: int) -> str | None:
    """Whether the number of images can be right for the task, or "field: ..."."""
    if task is not Task.TEMPORAL_REORDERING:
        return None
    labels = {len([c for c in text if c.isdigit()]) for text in options.values()} - {0}
    if len(labels) == 1 and count not in labels:
        return f"images: found {count} for orders of {labels.pop()}, expected as many images as labels"
    return None
