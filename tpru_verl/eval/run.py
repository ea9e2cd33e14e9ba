"""`tpru eval MODEL`: load, ask, judge, count, write."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tpru_verl import prompts
from tpru_verl.eval.benchmarks import Benchmark, Loaded, load
from tpru_verl.eval.benchmarks.base import LETTER
from tpru_verl.eval.engines.base import Engine, Request, Sampling
from tpru_verl.eval.item import Item, rotations
from tpru_verl.eval.results import Line, line_of_row, prompts_hash, summarise, versions
from tpru_verl.eval.store import Store, key_of
from tpru_verl.files import write_json, write_text
from tpru_verl.sample import Task

STYLES = ("tpru", "direct", "benchmark")
ORDER = "Answer with the order alone, as letters without spaces."
WORD = "Answer with one word or number."
FORMAT = 1  # of what a stored reply depends on

console = Console(stderr=True)


@dataclass(frozen=True)
class Settings:
    """What is asked, and how; all of it goes into the summary."""

    style: str = "tpru"
    circular: bool = False
    limit: int | None = None
    sampling: Sampling = field(default_factory=Sampling)


def prompt_of(benchmark: Benchmark, item: Item, style: str) -> str:
    """The text that is sent, tags where the images belong.

    `tpru` and any other template of `tpru_verl.prompts` as in training, `direct` for an answer without
    reasoning, `benchmark` as the benchmark's authors ask. Raises as `prompts.render`.
    """
    if style == "benchmark" and benchmark.template is None:
        said = benchmark.instruction
        return f"{item.problem}\n{said if isinstance(said, str) else said(item)}"
    if style == "direct":
        return f"{item.problem}\n{LETTER if item.options else WORD if item.accepted else ORDER}"
    template = benchmark.template if style == "benchmark" else style
    return prompts.render(item.problem, _task(item), template or "tpru")


def _task(item: Item) -> str | None:
    if item.task in {task.value for task in Task}:
        return item.task
    return None if item.options or item.accepted else Task.TEMPORAL_REORDERING.value


def evaluate(
    benchmarks: Sequence[tuple[Benchmark, str | None]],
    engine: Engine,
    settings: Settings,
    out: Path,
    model: str,
) -> dict[str, object]:
    """Run every benchmark, with the source that is given for it, and write OUT; returns the summary.

    OUT/responses.jsonl grows as answers come, and a second run of the same asks only what is missing.

    Raises:
        RuntimeError: the engine stopped answering.
        KeyboardInterrupt: after what was answered is on disk.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / "responses.jsonl")
    found: dict[str, object] = {}
    pages: list[tuple[Loaded, list[Line]]] = []
    try:
        for benchmark, data in benchmarks:
            clock = _Clock()
            with clock.phase("load"):
                loaded = _limited(load(benchmark, data), settings)
            _announce(loaded, engine)
            lines = _ask(loaded, engine, settings, store, clock)
            with clock.phase("statistics"):
                scores = summarise(lines)
            write_text(
                out / f"{benchmark.name}.jsonl",
                "".join(json.dumps(x) + "\n" for x in lines),
            )
            found[benchmark.name] = {
                "title": benchmark.title,
                "source": loaded.origin,
                "revision": loaded.revision,
                "published_rows": benchmark.rows,
                "notes": loaded.notes,
                "prompts": prompts_hash(lines),
                **scores,
                "seconds": clock.seconds,
                "tokens": clock.tokens,
            }
            pages.append((loaded, lines))
    finally:
        store.close()
        engine.close()
    summary: dict[str, object] = {
        "model": model,
        "benchmarks": found,
        "settings": {
            "style": settings.style,
            "circular": settings.circular,
            "limit": settings.limit,
            "min_pixels": engine.bounds.least,
            "max_pixels": engine.bounds.most,
            "token_side": engine.bounds.factor,
            **asdict(settings.sampling),
            **engine.description(),
        },
        "versions": versions(),
        "command": ["tpru", *sys.argv[1:]],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(out / "summary.json", summary)
    from tpru_verl.eval.page import write_page

    write_page(out / "page.html", summary, pages)
    return summary


def _limited(loaded: Loaded, settings: Settings) -> Loaded:
    """`limit` rows, drawn by the seed and kept in their order."""
    if settings.limit is None or settings.limit >= len(loaded.items):
        return loaded
    rng = np.random.default_rng(settings.sampling.seed)
    chosen = sorted(rng.permutation(len(loaded.items))[: settings.limit].tolist())
    note = f"{settings.limit:,} of {len(loaded.items):,} rows, drawn with seed {settings.sampling.seed}"
    return Loaded(
        loaded.benchmark,
        [loaded.items[i] for i in chosen],
        loaded.origin,
        loaded.revision,
        [*loaded.notes, note],
    )


def _announce(loaded: Loaded, engine: Engine) -> None:
    bounds, commit = engine.bounds, f" at {loaded.revision[:8]}" if loaded.revision else ""
    pixels = f"images of {bounds.least:,} to {bounds.most:,} pixels"
    console.print(
        f"{loaded.benchmark.title}: {len(loaded.items):,} rows of {loaded.origin}{commit}, {pixels}",
        highlight=False,
    )
    for note in loaded.notes:
        console.print(f"  {note}", style="yellow", highlight=False)


class _Clock:
    """Seconds of each phase, and tokens."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.tokens = {"prompt": 0, "answer": 0}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - began, 4)


def _ask(loaded: Loaded, engine: Engine, settings: Settings, store: Store, clock: _Clock) -> list[Line]:
    """Ask what is not stored, and judge each row as soon as it is whole."""
    asked = [_requests(loaded.benchmark, item, engine, settings) for item in loaded.items]
    todo = [request for _, requests in asked for request in requests if store.get(request.key) is None]
    todo = list({request.key: request for request in todo}.values())
    known = sum(len(requests) for _, requests in asked) - len(todo)
    if known:
        console.print(f"  {known:,} answers are there already, {len(todo):,} to be asked", highlight=False)
    errors: dict[str, str] = {}
    with clock.phase("start"):
        engine.start(todo)
    with clock.phase("generate"):
        _answer(engine, todo, store, errors, loaded.benchmark.title, clock)
    lines: list[Line] = []
    with clock.phase("grade"):
        for (item, broken), requests in ((head, requests) for head, requests in asked):
            failed = broken or next((errors[r.key] for r in requests if r.key in errors), None)
            replies = [(r.item, r.prompt, store.get(r.key)) for r in requests]
            lines.append(line_of_row(loaded.benchmark.name, item, replies, failed))
    for line in [line for line in lines if line["failed"]][:5]:
        console.print(f"  row {line['id']} failed: {line['failed']}", style="red", highlight=False)
    return lines


def _requests(
    benchmark: Benchmark, item: Item, engine: Engine, settings: Settings
) -> tuple[tuple[Item, str | None], list[Request]]:
    """A row's requests, none where it cannot be asked, and why."""
    if item.broken:
        return (item, item.broken), []
    try:
        variants = rotations(item) if settings.circular else [item]
        texts = [prompt_of(benchmark, variant, settings.style) for variant in variants]
    except ValueError as error:
        return (item, str(error)), []
    facts = (FORMAT, engine.identity, asdict(settings.sampling), asdict(engine.bounds))
    return (item, None), [
        Request(key_of(facts, item.id, text, images=variant.images), variant, text)
        for variant, text in zip(variants, texts, strict=True)
    ]


def _answer(
    engine: Engine, todo: list[Request], store: Store, errors: dict[str, str], title: str, clock: _Clock
) -> None:
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=len(todo))
        for request, reply in engine.answer(todo):
            progress.advance(bar)
            if reply.error is not None:
                errors[request.key] = reply.error
                continue
            store.put(request.key, reply)
            clock.tokens["prompt"] += reply.prompt_tokens
            clock.tokens["answer"] += reply.tokens
