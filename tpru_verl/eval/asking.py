"""The requests of a benchmark's rows: what is asked of an engine, in which order, and what came back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tpru_verl import prompts
from tpru_verl.eval.benchmarks import Benchmark, Loaded
from tpru_verl.eval.benchmarks.base import LETTER
from tpru_verl.eval.decide import DECIDES, GENERATE, OPENING, SCORE, candidates_of, opening_after
from tpru_verl.eval.engines.base import Engine, Request
from tpru_verl.eval.item import Item, rotations
from tpru_verl.eval.results import RowResult, result_of_row
from tpru_verl.eval.store import CUT_OFF, Reply, Store, key_of
from tpru_verl.sample import Task
from tpru_verl.terminal import line_of, messages, progress_bar

STYLES = ("tpru", "direct", "benchmark")
ORDER = (
    "Answer with the order alone: the numbers of the images separated by spaces, or their letters without "
    "spaces where the question labels them with letters."
)
WORD = "Answer with one word or number."
FORMAT = 1  # part of the key of a stored reply: a new number makes all stored replies invalid
SCORED = 2  # the same for scores: 1 added those of " A" and "A" from an endpoint


@dataclass(frozen=True)
class EvalOptions:
    """How rows are chosen and asked. The engine holds the sampling settings and the pixel bounds.

    `decide` names one or several of `DECIDES`. With `after_reasoning`, `guided` and `score` let the model
    reason up to `<answer>` first. Raises ValueError for settings that do not go together.
    """

    style: str = "tpru"
    circular: bool = False
    limit: int | None = None
    decide: tuple[str, ...] = (GENERATE,)
    after_reasoning: bool = False

    def __post_init__(self) -> None:
        check_style(self.style)
        unknown = [name for name in self.decide if name not in DECIDES]
        if unknown or not self.decide:
            decide = ",".join(unknown)
            raise ValueError(f"--decide: found {decide!r}, expected one or more of {', '.join(DECIDES)}")
        if self.after_reasoning and self.decide == (GENERATE,):
            raise ValueError("--after-reasoning: found --decide generate, expected guided or score")


def check_style(style: str) -> None:
    """Raises ValueError for what is no style, and as `prompts.render` for a template that does not render."""
    if style in STYLES:
        return
    try:
        prompts.render("<image>", None, style)
    except FileNotFoundError as error:
        known = ", ".join(dict.fromkeys((*STYLES, *prompts.TEMPLATES)))
        raise ValueError(f"--style: found {style!r}, expected {known} or a .jinja file") from error


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


def opening_of(benchmark: Benchmark, style: str) -> str:
    """What a response begins with where nothing but the answer is to follow."""
    plain = style == "direct" or (style == "benchmark" and benchmark.template is None)
    return "" if plain else OPENING


class Clock:
    """Seconds of each phase, and tokens."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.tokens = {"prompt": 0, "answer": 0}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - began, 4)


def say(text: str, style: str | None = None) -> None:
    """One line on standard error."""
    messages.print(text, style=style, highlight=False, soft_wrap=True)


def ask(loaded: Loaded, engine: Engine, options: EvalOptions, store: Store, clock: Clock) -> list[RowResult]:
    """Ask for each reply that is not stored, and judge all rows. `options` name one way to decide."""
    title = loaded.benchmark.title
    engine.identify(server_of(store.path))
    asked = [_requests(loaded.benchmark, item, engine, options) for item in loaded.items]
    if options.after_reasoning:
        asked = _after_reasoning(asked, engine, store, clock, title)
    errors = _answered([r for _, requests in asked for r in requests], engine, store, clock, title)
    results: list[RowResult] = []
    rough = 0
    with clock.phase("grade"):
        for item, (unasked, requests) in zip(loaded.items, asked, strict=True):
            failed = unasked or next((errors[r.key] for r in requests if r.key in errors), None)
            replies = [(r.item, r.prompt, _after_cut(r, store.get(r.key))) for r in requests]
            results.append(result_of_row(loaded.benchmark.name, item, replies, failed))
            rough += any(reply is not None and not reply.exact for _, _, reply in replies)
    for row in [row for row in results if row["failed"]][:5]:
        say(f"  row {row['id']} failed: {row['failed']}", style="red")
    if rough:
        say(
            f"  {rough:,} of {len(results):,} rows have valid answers outside of the endpoint's list of "
            "likeliest tokens: such a row's answer is exact, but its probability is the least that it can be",
            "yellow",
        )
    return results


def server_of(responses: Path) -> Path:
    """The file beside stored replies that says what weights their server had."""
    return responses.with_name(responses.name.removesuffix("responses.jsonl") + "server.json")


def _after_cut(request: Request, reply: Reply | None) -> Reply | None:
    """The reply; its answer counts as cut off where the reasoning before it was."""
    return replace(reply, finish=[CUT_OFF] * len(reply.finish)) if reply and request.cut_off else reply


Asked = list[tuple[str | None, list[Request]]]  # of each row: why it cannot be asked, or its requests


def _requests(
    benchmark: Benchmark, item: Item, engine: Engine, options: EvalOptions
) -> tuple[str | None, list[Request]]:
    """A row's requests; or why it cannot be asked, and no requests."""
    if item.broken:
        return item.broken, []
    (decide,) = options.decide
    try:
        variants = rotations(item) if options.circular else [item]
        texts = [prompt_of(benchmark, variant, options.style) for variant in variants]
        for text in texts:
            text.encode()
        candidates = () if decide == GENERATE else candidates_of(item)
    except UnicodeEncodeError as error:
        return f"problem: found {error.object[error.start]!r}, half a character; expected text", []
    except ValueError as error:
        return line_of(error), []
    opening = "" if decide == GENERATE else opening_of(benchmark, options.style)
    return None, [
        _keyed(Request("", variant, text, decide, candidates, opening), engine)
        for variant, text in zip(variants, texts, strict=True)
    ]


def _keyed(request: Request, engine: Engine) -> Request:
    """The request with the hash of all that its reply depends on."""
    facts: tuple[object, ...] = (FORMAT, engine.identity, asdict(engine.sampling), asdict(engine.bounds))
    if request.decide != GENERATE or request.stop:
        facts = (*facts, request.decide, request.candidates, request.opening, request.stop)
    if request.decide == SCORE:
        facts = (*facts, SCORED)
    item = request.item
    return replace(request, key=key_of(facts, item.id, request.prompt, images=item.images))


def _after_reasoning(asked: Asked, engine: Engine, store: Store, clock: Clock, title: str) -> Asked:
    """The requests, each opened by what the model writes before its answer."""
    thinking = {
        request.key: _keyed(
            replace(request, decide=GENERATE, candidates=(), opening="", stop=OPENING), engine
        )
        for _, requests in asked
        for request in requests
    }
    errors = _answered([*thinking.values()], engine, store, clock, f"{title}, reasoning")
    found: Asked = []
    for why, requests in asked:
        replies = [store.get(thinking[request.key].key) for request in requests]
        failed = next(
            (errors.get(thinking[r.key].key) for r in requests if thinking[r.key].key in errors), why
        )
        opened = [
            _keyed(_opened(request, reply), engine)
            for request, reply in zip(requests, replies, strict=True)
            if reply is not None
        ]
        found.append((failed, [] if failed else opened))
    return found


def _opened(request: Request, reasoning: Reply) -> Request:
    cut_off = reasoning.finish[0] == CUT_OFF
    return replace(request, opening=opening_after(reasoning.texts[0], cut_off=cut_off), cut_off=cut_off)


def _answered(
    requests: Sequence[Request], engine: Engine, store: Store, clock: Clock, title: str
) -> dict[str, str]:
    """Ask for the replies that are not stored, and store them. Returns the errors of the others by key."""
    todo = [*{request.key: request for request in requests if store.get(request.key) is None}.values()]
    if known := len(requests) - len(todo):
        hint = f"; if the model of this name has changed, delete {store.path}"
        say(f"  {known:,} answers are there already, {len(todo):,} to be asked{hint}")
    errors: dict[str, str] = {}
    with clock.phase("start"):
        engine.start(todo)
    with clock.phase("generate"), progress_bar() as progress:
        bar = progress.add_task(title, total=len(todo))
        for request, reply in engine.answer(todo):
            progress.advance(bar)
            if reply.error is not None:
                errors[request.key] = reply.error
                continue
            store.put(request.key, reply)
            clock.tokens["prompt"] += reply.prompt_tokens
            clock.tokens["answer"] += reply.tokens
    return errors
