"""`tpru eval MODEL`: load the rows, ask the model, judge the answers, count, and write the results."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tpru_verl import prompts
from tpru_verl.data.tokens.pixels import MAX, MIN
from tpru_verl.eval.benchmarks import Benchmark, Loaded, load
from tpru_verl.eval.benchmarks.base import LETTER
from tpru_verl.eval.benchmarks.own import own
from tpru_verl.eval.engines.base import Engine, Request, Sampling
from tpru_verl.eval.item import Item, rotations
from tpru_verl.eval.results import RowResult, prompts_hash, result_of_row, summarise, versions
from tpru_verl.eval.store import Store, key_of
from tpru_verl.files import locked, write_json, write_text
from tpru_verl.redaction import redact_command, redact_urls
from tpru_verl.sample import Task
from tpru_verl.terminal import line_of, messages, progress_bar

STYLES = ("tpru", "direct", "benchmark")
ORDER = "Answer with the order alone, as letters without spaces."
WORD = "Answer with one word or number."
FORMAT = 1  # part of the key of a stored reply: a new number makes all stored replies invalid


@dataclass(frozen=True)
class EvalOptions:
    """How rows are chosen and asked. The engine holds the sampling settings and the pixel bounds."""

    style: str = "tpru"
    circular: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """The judged rows of one evaluation and, as `results.summarise` returns it, their accuracy."""

    rows: list[RowResult]
    summary: dict[str, Any]


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
    options: EvalOptions,
    out: Path,
    model: str,
) -> dict[str, object]:
    """Evaluate each benchmark with the source given for it, write the results to OUT, return the summary.

    Each reply is appended to OUT/responses.jsonl as it comes. A second call asks only for missing replies.

    Raises:
        RuntimeError: the engine stopped answering, or another process writes to OUT.
        KeyboardInterrupt: the user pressed Ctrl-C; all replies are on disk.
    """
    try:
        with locked(out):
            return _evaluated(benchmarks, engine, options, out, model)
    finally:
        engine.close()


def _evaluated(
    benchmarks: Sequence[tuple[Benchmark, str | None]],
    engine: Engine,
    options: EvalOptions,
    out: Path,
    model: str,
) -> dict[str, object]:
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, object] = {}
    pages: list[tuple[Loaded, list[RowResult]]] = []
    with _opened(out / "responses.jsonl") as store:
        for benchmark, data in benchmarks:
            clock = _Clock()
            with clock.phase("load"):
                loaded = _limited(load(benchmark, data), options, engine.sampling.seed)
            _announce(loaded, engine)
            results = _ask(loaded, engine, options, store, clock)
            with clock.phase("statistics"):
                scores = summarise(results)
            write_text(out / f"{benchmark.name}.jsonl", "".join(json.dumps(row) + "\n" for row in results))
            found[benchmark.name] = {
                "title": benchmark.title,
                "source": redact_urls(loaded.origin),
                "revision": loaded.revision,
                "published_rows": benchmark.rows,
                "notes": loaded.notes,
                "prompts": prompts_hash(results),
                **scores,
                "seconds": clock.seconds,
                "tokens": clock.tokens,
            }
            pages.append((loaded, results))
    engine.close()  # before the page is drawn: the engine has the memory
    summary: dict[str, object] = {
        "model": model,
        "benchmarks": found,
        "settings": {
            **asdict(options),
            "min_pixels": engine.bounds.least,
            "max_pixels": engine.bounds.most,
            "token_side": engine.bounds.factor,
            **asdict(engine.sampling),
            **engine.description(),
        },
        "versions": versions(),
        "command": ["tpru", *redact_command(sys.argv[1:])],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(out / "summary.json", summary)
    from tpru_verl.eval.page import write_page

    write_page(out / "page.html", summary, pages)
    return summary


def evaluate_rows(
    model: Path,
    rows: Path,
    samplings: Sequence[Sampling],
    responses: Path,
    *,
    style: str = "tpru",
    min_pixels: int = MIN,
    max_pixels: int = MAX,
) -> list[Evaluation]:
    """Ask vLLM, in this process, about rows in TPRU's format: one evaluation for each of `samplings`.

    vLLM starts once and has ended on return. Each reply is appended to the file `responses` as it comes. A
    second call asks only for missing replies.

    Raises ValueError or FileNotFoundError in one line if model or rows cannot be read.
    """
    from tpru_verl.eval.engines.local import Local

    ((benchmark, source),) = own([str(rows)])
    loaded = load(benchmark, source)
    engine = Local(str(model), samplings[0], min_pixels=min_pixels, max_pixels=max_pixels)
    evaluations: list[Evaluation] = []
    try:
        with _opened(responses) as store:
            for sampling in samplings:
                engine.sampling = sampling
                results = _ask(loaded, engine, EvalOptions(style), store, _Clock())
                evaluations.append(Evaluation(results, summarise(results)))
    finally:
        engine.close()
    return evaluations


@contextmanager
def _opened(path: Path) -> Iterator[Store]:
    store = Store(path)
    if store.unusable:
        _say(f"{path}: {len(store.unusable):,} stored replies are no text and will be asked again", "yellow")
    try:
        yield store
    finally:
        store.close()


def _limited(loaded: Loaded, options: EvalOptions, seed: int) -> Loaded:
    """`limit` rows, drawn with the seed, in their original order."""
    if options.limit is None or options.limit >= len(loaded.items):
        return loaded
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(len(loaded.items))[: options.limit].tolist())
    note = f"{options.limit:,} of {len(loaded.items):,} rows, drawn with seed {seed}"
    items = [loaded.items[i] for i in chosen]
    return replace(loaded, items=items, notes=[*loaded.notes, note], whole=False)


def _announce(loaded: Loaded, engine: Engine) -> None:
    bounds, commit = engine.bounds, f" at {loaded.revision[:8]}" if loaded.revision else ""
    pixels = f"images of {bounds.least:,} to {bounds.most:,} pixels"
    _say(f"{loaded.benchmark.title}: {len(loaded.items):,} rows of {loaded.origin}{commit}, {pixels}")
    for note in loaded.notes:
        _say(f"  {note}", style="yellow")


def _say(text: str, style: str | None = None) -> None:
    """One line on standard error."""
    messages.print(text, style=style, highlight=False)


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


def _ask(
    loaded: Loaded, engine: Engine, options: EvalOptions, store: Store, clock: _Clock
) -> list[RowResult]:
    """Ask for each reply that is not stored, and judge all rows."""
    asked = [_requests(loaded.benchmark, item, engine, options) for item in loaded.items]
    todo = [request for _, requests in asked for request in requests if store.get(request.key) is None]
    todo = list({request.key: request for request in todo}.values())
    known = sum(len(requests) for _, requests in asked) - len(todo)
    if known:
        _say(f"  {known:,} answers are there already, {len(todo):,} to be asked")
    errors: dict[str, str] = {}
    with clock.phase("start"):
        engine.start(todo)
    with clock.phase("generate"):
        _answer(engine, todo, store, errors, loaded.benchmark.title, clock)
    results: list[RowResult] = []
    with clock.phase("grade"):
        for item, (unasked, requests) in zip(loaded.items, asked, strict=True):
            failed = unasked or next((errors[r.key] for r in requests if r.key in errors), None)
            replies = [(r.item, r.prompt, store.get(r.key)) for r in requests]
            results.append(result_of_row(loaded.benchmark.name, item, replies, failed))
    for row in [row for row in results if row["failed"]][:5]:
        _say(f"  row {row['id']} failed: {row['failed']}", style="red")
    return results


def _requests(
    benchmark: Benchmark, item: Item, engine: Engine, options: EvalOptions
) -> tuple[str | None, list[Request]]:
    """A row's requests; or why it cannot be asked, and no requests."""
    if item.broken:
        return item.broken, []
    try:
        variants = rotations(item) if options.circular else [item]
        texts = [prompt_of(benchmark, variant, options.style) for variant in variants]
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        return f"problem: found {error.object[error.start]!r}, half a character; expected text", []
    except ValueError as error:
        return line_of(error), []
    facts = (FORMAT, engine.identity, asdict(engine.sampling), asdict(engine.bounds))
    return None, [
        Request(key_of(facts, item.id, text, images=variant.images), variant, text)
        for variant, text in zip(variants, texts, strict=True)
    ]


def _answer(
    engine: Engine, todo: list[Request], store: Store, errors: dict[str, str], title: str, clock: _Clock
) -> None:
    with progress_bar() as progress:
        bar = progress.add_task(title, total=len(todo))
        for request, reply in engine.answer(todo):
            progress.advance(bar)
            if reply.error is not None:
                errors[request.key] = reply.error
                continue
            store.put(request.key, reply)
            clock.tokens["prompt"] += reply.prompt_tokens
            clock.tokens["answer"] += reply.tokens
