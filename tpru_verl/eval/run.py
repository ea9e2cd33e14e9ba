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

from tpru_verl.data.tokens.pixels import MAX, MIN
from tpru_verl.eval.asking import Clock, EvalOptions, ask, say
from tpru_verl.eval.benchmarks import Benchmark, Loaded, load
from tpru_verl.eval.benchmarks.own import own
from tpru_verl.eval.compare import as_json, decisions
from tpru_verl.eval.decide import GENERATE
from tpru_verl.eval.engines.base import Engine, Sampling
from tpru_verl.eval.failures import failures_of
from tpru_verl.eval.results import RowResult, prompts_hash, summarise, versions
from tpru_verl.eval.store import Store
from tpru_verl.files import folder_for_a_block, locked, write_json, write_text
from tpru_verl.redaction import redact_command, redact_urls


@dataclass(frozen=True)
class Evaluation:
    """The judged rows of one evaluation and, as `results.summarise` returns it, their accuracy."""

    rows: list[RowResult]
    summary: dict[str, Any]


def evaluate(
    benchmarks: Sequence[tuple[Benchmark, str | None]],
    engine: Engine,
    options: EvalOptions,
    out: Path,
    model: str,
) -> dict[str, Any]:
    """Evaluate each benchmark with the source given for it, write the results to OUT, return the summary.

    Each reply is appended to OUT/responses.jsonl as it comes. A second call asks only for missing replies.

    Raises:
        RuntimeError: the engine stopped answering, or another process writes to OUT.
        KeyboardInterrupt: the user pressed Ctrl-C; all replies are on disk.
    """
    try:
        with locked(out), folder_for_a_block(out):
            return _evaluated(benchmarks, engine, options, out, model)
    finally:
        engine.close()


def _evaluated(
    benchmarks: Sequence[tuple[Benchmark, str | None]],
    engine: Engine,
    options: EvalOptions,
    out: Path,
    model: str,
) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    pages: list[tuple[Loaded, list[RowResult]]] = []
    with _opened(out / "responses.jsonl") as store:
        # All of them before the first is asked: an hour later is too late for a source that is not there.
        for loaded, clock in [_loaded(benchmark, data, options, engine) for benchmark, data in benchmarks]:
            _announce(loaded, engine)
            for decide in options.decide:
                named = _named(loaded, decide)
                reasoning = options.after_reasoning and decide != GENERATE
                way = replace(options, decide=(decide,), after_reasoning=reasoning)
                results = ask(named, engine, way, store, clock)
                with clock.phase("statistics"):
                    scores = summarise(results)
                name = named.benchmark.name
                for told in ("summary.json", "page.html"):  # of an earlier run: they are not about these rows
                    (out / told).unlink(missing_ok=True)
                write_text(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in results))
                found[name] = {
                    "title": named.benchmark.title,
                    "source": redact_urls(loaded.origin),
                    "revision": loaded.revision,
                    "published_rows": loaded.benchmark.rows,
                    "notes": loaded.notes,
                    "prompts": prompts_hash(results),
                    **scores,
                    "failures": failures_of(named.items, results),
                    "seconds": clock.seconds,
                    "tokens": clock.tokens,
                }
                pages.append((named, results))
                clock = Clock()
    engine.close()  # before the page is drawn: the engine has the memory
    summary: dict[str, Any] = {
        "model": model,
        "benchmarks": found,
        "decisions": as_json(decisions([results for _, results in pages], found, options.decide)),
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
                results = ask(loaded, engine, EvalOptions(style), store, Clock())
                evaluations.append(Evaluation(results, summarise(results)))
    finally:
        engine.close()
    return evaluations


@contextmanager
def _opened(path: Path) -> Iterator[Store]:
    store = Store(path)
    if store.unusable:
        say(f"{path}: {len(store.unusable):,} stored replies are no text and will be asked again", "yellow")
    try:
        yield store
    finally:
        store.close()


def _loaded(
    benchmark: Benchmark, data: str | None, options: EvalOptions, engine: Engine
) -> tuple[Loaded, Clock]:
    """The rows that are asked, and a clock that has the time of reading them. Raises as `load`."""
    clock = Clock()
    with clock.phase("load"):
        return _limited(load(benchmark, data), options, engine.sampling.seed), clock


def _limited(loaded: Loaded, options: EvalOptions, seed: int) -> Loaded:
    """`limit` rows, drawn with the seed, in their original order."""
    if options.limit is None or options.limit >= len(loaded.items):
        return loaded
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(len(loaded.items))[: options.limit].tolist())
    note = f"{options.limit:,} of {len(loaded.items):,} rows, drawn with seed {seed}"
    items = [loaded.items[i] for i in chosen]
    return replace(loaded, items=items, notes=[*loaded.notes, note], whole=False)


def _named(loaded: Loaded, decide: str) -> Loaded:
    """The rows under a name that tells how they are decided. Published numbers are of responses alone."""
    if decide == GENERATE:
        return loaded
    old = loaded.benchmark
    benchmark = replace(old, name=f"{old.name}.{decide}", title=f"{old.title}, {decide}")
    return replace(loaded, benchmark=benchmark, whole=False)


def _announce(loaded: Loaded, engine: Engine) -> None:
    bounds, commit = engine.bounds, f" at {loaded.revision[:8]}" if loaded.revision else ""
    pixels = f"images of {bounds.least:,} to {bounds.most:,} pixels"
    say(f"{loaded.benchmark.title}: {len(loaded.items):,} rows of {loaded.origin}{commit}, {pixels}")
    for note in loaded.notes:
        say(f"  {note}", style="yellow")
