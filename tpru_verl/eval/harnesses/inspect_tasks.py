r"""The benchmarks as inspect-ai tasks, found by the entry point `inspect_ai`; written for inspect-ai 0.3.

    LOCAL_BASE_URL=http://localhost:8000/v1 LOCAL_API_KEY=none \
        inspect eval tpru_verl/tpru_test --model openai-api/local/NAME -T data=rows.parquet
    inspect eval tpru_verl/muirbench --model vllm/NAME -T style=direct

Pictures stay where their tags are: `multiple_choice()` would write the question anew and put them first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

from inspect_ai import Task, task  # type: ignore[import-not-found]
from inspect_ai.dataset import MemoryDataset, Sample  # type: ignore[import-not-found]
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig  # type: ignore[import-not-found]
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr  # type: ignore[import-not-found]
from inspect_ai.solver import TaskState, generate  # type: ignore[import-not-found]

from tpru_verl.data.tokens.pixels import MAX, MIN, Bounds
from tpru_verl.eval.benchmarks import BENCHMARKS
from tpru_verl.eval.engines.endpoint import data_url
from tpru_verl.eval.harnesses.rows import TEXTS, HostRow, rows_of, verdict_of


@scorer(metrics={"correct": [mean(), stderr(cluster="source")], "unparsed": [mean()]})
def tpru_judge() -> Scorer:
    """The verdict of `tpru eval`; standard errors are clustered by source."""

    async def score(state: TaskState, target: Target) -> Score:
        found = verdict_of(state.metadata, state.output.completion)
        value: dict[str, str | int | float | bool | None] = {
            "correct": float(found.correct),
            "unparsed": float(found.parsed is None),
        }
        return Score(value=value, answer=found.parsed, explanation=state.metadata["failed"] or None)

    return score


def sample_of(row: HostRow) -> Sample:
    """A row, its pictures in place."""
    content: list[Any] = [
        ContentText(text=part) if isinstance(part, str) else ContentImage(image=data_url(part), detail="auto")
        for part in row.parts()
    ]
    facts = {name: getattr(row, name) for name in TEXTS if name != "prompt"}
    return Sample(
        input=[ChatMessageUser(content=content)],
        target=row.answer,
        id=row.id,
        metadata={**facts, "source": row.source or row.id},
    )


def _task(
    name: str,
    data: str | None = None,
    style: str = "tpru",
    min_pixels: int = MIN,
    max_pixels: int = MAX,
    token_side: int = 28,
    max_tokens: int = 1024,
) -> Task:
    benchmark = BENCHMARKS[name]
    bounds = Bounds(min_pixels, max_pixels, token_side)
    samples = [sample_of(row) for row in rows_of(benchmark, data, style, bounds)]
    return Task(
        dataset=MemoryDataset(samples, name=benchmark.title),
        solver=[generate()],
        scorer=tpru_judge(),
        config=GenerateConfig(temperature=0.0, max_tokens=max_tokens),
        metadata={"style": style, "min_pixels": min_pixels, "max_pixels": max_pixels},
    )


def _named(function: Callable[[], None]) -> Callable[..., Task]:
    """The task of the benchmark that a function is named after; inspect-ai sees the parameters of `_task`."""

    @wraps(function)
    def made(*args: Any, **options: Any) -> Task:
        return _task(function.__name__.replace("_", "-"), *args, **options)

    ours = signature(_task)
    made.__signature__ = ours.replace(parameters=[*ours.parameters.values()][1:])  # type: ignore[attr-defined]
    return made


# A `def` each, as inspect-ai reads in a file's source which tasks it has: those of a loop it would not list.
@task
@_named
def tpru_test() -> None: ...


@task
@_named
def muirbench() -> None: ...


@task
@_named
def lego_puzzles() -> None: ...


@task
@_named
def blink() -> None: ...


@task
@_named
def mmstar() -> None: ...


@task
@_named
def realworldqa() -> None: ...


@task
@_named
def mmmu_dev() -> None: ...


@task
@_named
def mmtbench() -> None: ...


@task
@_named
def mmcr() -> None: ...


@task
@_named
def mme_realworld_lite() -> None: ...
