r"""The benchmarks as inspect-ai tasks, found by the entry point `inspect_ai`; written for inspect-ai 0.3.

    LOCAL_BASE_URL=http://localhost:8000/v1 LOCAL_API_KEY=none \
        inspect eval tpru_verl/tpru_test --model openai-api/local/NAME -T data=rows.parquet
    inspect eval tpru_verl/muirbench --model vllm/NAME -T style=direct

Pictures stay where their tags are. inspect-ai's own `multiple_choice()` would put all of them first.
"""

from __future__ import annotations

from typing import Any

from inspect_ai import Task, task  # type: ignore[import-not-found]
from inspect_ai.dataset import MemoryDataset, Sample  # type: ignore[import-not-found]
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig  # type: ignore[import-not-found]
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr  # type: ignore[import-not-found]
from inspect_ai.solver import TaskState, generate  # type: ignore[import-not-found]

from tpru_verl.data.tokens.pixels import MAX, MIN, Bounds
from tpru_verl.eval.benchmarks import BENCHMARKS
from tpru_verl.eval.engines.endpoint import data_url
from tpru_verl.eval.harnesses.rows import TEXTS, HarnessRow, rows_of, verdict_of


@scorer(metrics={"correct": [mean(), stderr(cluster="source")], "unparsed": [mean()]})
def tpru_judge() -> Scorer:
    """The verdict of `tpru eval`, with standard errors clustered by source."""

    async def score(state: TaskState, target: Target) -> Score:
        found = verdict_of(state.metadata, state.output.completion)
        value: dict[str, str | int | float | bool | None] = {
            "correct": float(found.correct),
            "unparsed": float(found.parsed is None),
        }
        return Score(value=value, answer=found.parsed, explanation=state.metadata["failed"] or None)

    return score


def sample_of(row: HarnessRow) -> Sample:
    """A row in the form of inspect-ai. Pictures stay where the prompt has their tags."""
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
    data: str | None,
    style: str,
    min_pixels: int,
    max_pixels: int,
    token_side: int,
    max_tokens: int,
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


# inspect-ai reads the names of a file's tasks from its source, and the options of a task from its signature.
# fmt: off
@task
def tpru_test(data: str | None = None, style: str = "tpru", min_pixels: int = MIN,
    max_pixels: int = MAX, token_side: int = 28, max_tokens: int = 1024) -> Task:
    return _task("tpru-test", data, style, min_pixels, max_pixels, token_side, max_tokens)


@task
def muirbench(data: str | None = None, style: str = "tpru", min_pixels: int = MIN,
    max_pixels: int = MAX, token_side: int = 28, max_tokens: int = 1024) -> Task:
    return _task("muirbench", data, style, min_pixels, max_pixels, token_side, max_tokens)


@task
def lego_puzzles(data: str | None = None, style: str = "tpru", min_pixels: int = MIN,
    max_pixels: int = MAX, token_side: int = 28, max_tokens: int = 1024) -> Task:
    return _task("lego-puzzles", data, style, min_pixels, max_pixels, token_side, max_tokens)


@task
def blink(data: str | None = None, style: str = "tpru", min_pixels: int = MIN,
    max_pixels: int = MAX, token_side: int = 28, max_tokens: int = 1024) -> Task:
    return _task("blink", data, style, min_pixels, max_pixels, token_side, max_tokens)


@task
def mmstar(data: str | None = None, style: str = "tpru", min_pixels: int = MIN,
    max_pixels: int = MAX, token_side: int = 28, max_tokens: int = 1024) -> Task:
    return _task("mmstar", data, style, min_pixels, max_pixels, token_side, max_tokens)


@task
def realworldqa(data: str | None = None, style: str = "tpru", min_pixels: int = MIN,
    max_pixels: int = MAX, token_side: int = 28, max_tokens: int = 1024) -> Task:
    return _task("realworldqa", data, style, min_pixels, max_pixels, token_side, max_tokens)


@task
def mmmu_dev(data: str | None = None, style: str = "tpru", min_pixels: int = MIN,
    max_pixels: int = MAX, token_side: int = 28, max_tokens: int = 1024) -> Task:
    return _task("mmmu-dev", data, style, min_pixels, max_pixels, token_side, max_tokens)


@task
def mmtbench(data: str | None = None, style: str = "tpru", min_pixels: int = MIN,
    max_pixels: int = MAX, token_side: int = 28, max_tokens: int = 1024) -> Task:
    return _task("mmtbench", data, style, min_pixels, max_pixels, token_side, max_tokens)


@task
def mmcr(data: str | None = None, style: str = "tpru", min_pixels: int = MIN,
    max_pixels: int = MAX, token_side: int = 28, max_tokens: int = 1024) -> Task:
    return _task("mmcr", data, style, min_pixels, max_pixels, token_side, max_tokens)


@task
def mme_realworld_lite(data: str | None = None, style: str = "tpru", min_pixels: int = MIN,
    max_pixels: int = MAX, token_side: int = 28, max_tokens: int = 1024) -> Task:
    return _task("mme-realworld-lite", data, style, min_pixels, max_pixels, token_side, max_tokens)
