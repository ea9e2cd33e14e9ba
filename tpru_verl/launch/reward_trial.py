"""The reward of a run, tried on its own rows before anything starts.

veRL and EasyR1 load a reward file when the first rollout is over, ten minutes in. Here it is loaded as they
would, in a process of its own, and grades a right and a wrong answer of real rows, written as the prompt
template asks for them, and what else a model may say.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from tpru_verl import prompts, trainers
from tpru_verl.launch.apart import ask
from tpru_verl.launch.overlays import reward_keys
from tpru_verl.sample import parse_options

if TYPE_CHECKING:
    from tpru_verl.data.source.rows import Row
    from tpru_verl.launch.settings import Settings

ROWS = 8  # of the training data, spread over its first pieces
SECONDS = 120  # for all of it: a reward that asks a server may take some
OTHER_MODEL = "train another model, or make rows for this one; tpru_tiny_cpu is for the rows of `tpru demo`"
_TAGS, _BOXED = "<think>...</think><answer>{}</answer>", "\\boxed{{}}"
_SAMPLES = ("", "I see a dog.", "<think>" + "and then " * 400)  # empty, off topic, cut off


@dataclass(frozen=True)
class Case:
    """What is graded: a response to a row, with all that the trainer hands over beside it."""

    response: str
    form: str  # one of `answer_forms`, "" for what follows none
    right: bool
    answer: str
    data_source: str
    extra_info: Mapping[str, object]


@dataclass(frozen=True)
class TrialResult:
    """What the reward said. `right` and `wrong`: mean scores of such answers, written in `form`.

    `words`: why the model will hardly answer rightly, as `words_warning` has it.
    """

    rows: int
    right: float
    wrong: float
    form: str
    words: str = ""

    def __str__(self) -> str:
        said = (
            f"{self.rows} rows of the data: a right answer, written as {self.form}, earns {self.right:g}, "
            f"a wrong one {self.wrong:g}"
        )
        return f"{said}\nwarning: {self.words}; {OTHER_MODEL}" if self.words else said


def try_reward(settings: Settings) -> TrialResult:
    """Load and call the run's reward on rows of its training data.

    Raises:
        ValueError: it does not load, raises, or returns a value that the trainer refuses; or right answers,
            in the form that the template asks for, earn no more than wrong ones. One line.
        FileNotFoundError: its file, or the data, is not there.
    """
    key = settings.key("reward_file")
    if not settings["reward_file"]:
        raise FileNotFoundError(f"{key}: nothing given, expected a file with a reward function")
    rows = first_rows(settings)
    forms = answer_forms(settings.template)
    cases = [case for row in rows for case in _cases(row, forms)]
    request = {
        "trainer": settings.trainer,
        "file": settings.text("reward_file"),
        "name": settings.text("reward_name"),
        "kwargs": settings["reward_kwargs"] or {},
        "type": settings["reward_type"],
        "asked": reward_keys(settings.config),
        "cases": [asdict(case) for case in cases],
    }
    try:
        scores = ask(answer_of, request, seconds=SECONDS)
    except ValueError as error:
        raise ValueError(f"{settings.said('reward_file')}: {error}") from error
    except RuntimeError as error:
        raise ValueError(
            f"{settings.said('reward_file')}: {error}, expected scores of {ROWS} rows"
        ) from error
    reports = [_report(form, cases, scores, len(rows)) for form in forms]
    best = max(reports, key=lambda report: report.right - report.wrong)
    if best.right <= best.wrong:
        raise ValueError(
            f"{key}: found {best.right:g} for right answers and {best.wrong:g} for wrong ones, written as "
            f"the template {settings.template} asks ({best.form}), expected more for right ones; template "
            "and reward have to agree on the form of an answer"
        )
    return replace(best, words=words_warning(settings, rows))


def words_warning(settings: Settings, rows: Sequence[Row] | None = None) -> str:
    """What is wrong where the model does not know the words of the rows; "" elsewhere.

    `rows`: those of `first_rows` where they have been read. Raises as that does.
    """
    from tpru_verl.data.tokens.words import spelled_words

    found = first_rows(settings) if rows is None else rows
    said = spelled_words(settings.text("model"), (str(row.problem) for row in found))
    return f"{settings.said('model')}: {said}" if said else ""


def _report(form: str, cases: Sequence[Case], scores: Sequence[float], rows: int) -> TrialResult:
    """Mean scores of the answers in one form."""
    graded = [(case, score) for case, score in zip(cases, scores, strict=True) if case.form == form]
    right, wrong = (
        sum(score for case, score in graded if case.right is wanted) / (len(graded) / 2)
        for wanted in (True, False)
    )
    return TrialResult(rows, right, wrong, form.replace("{}", "C"))


def first_rows(settings: Settings) -> list[Row]:
    """Up to ROWS usable rows of the training data, from its pieces in turn.

    Raises as reading does, and ValueError for unusable rows among them, unless the run leaves those out.
    """
    from tpru_verl.data.checks import problems_of_row, unusable_rows
    from tpru_verl.data.source.forms import Source
    from tpru_verl.data.source.rows import read_rows

    rows: list[Row] = []
    for name in settings.files("train_files"):
        source = Source.open(name, keys=settings.row_keys)
        units = source.units[:ROWS]
        each = -(-ROWS // len(units))
        rows += [row for unit in units for row in islice(read_rows(unit, source.form(unit)), each)]
    rows = rows[:ROWS]
    reasons = ["; ".join(problems_of_row(row)) for row in rows]
    usable = [row for row, reason in zip(rows, reasons, strict=True) if not reason]
    broken = [(row.place, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    if not usable or (broken and settings["on_invalid"] != "skip"):
        raise ValueError(unusable_rows(broken, len(rows)))
    return usable


def answer_forms(template: str) -> list[str]:
    """How an answer looks where the template is followed, with {} for the answer itself.

    Several for a template that does not say: the model may have learned any of them.
    """
    prompt = prompts.render("", None, template)
    if "<answer>" in prompt:
        return [_TAGS if "<think>" in prompt else "<answer>{}</answer>"]
    return [_BOXED] if "\\boxed" in prompt else ["{}", _TAGS, _BOXED]


def _cases(row: Row, forms: Sequence[str]) -> list[Case]:
    answer, problem = str(row.answer).strip(), str(row.problem)
    options = parse_options(problem)
    wrong = next((letter for letter in options if letter != answer), "Z")
    task = row.task
    extra = {"task": task.value if task else "", "options": options, "row_id": row.row_id}
    source = row.field("data_source") or (task.data_source if task else "tpru/unrecognised")
    said = [(form.replace("{}", text), form, text is answer) for form in forms for text in (answer, wrong)]
    said += [(response, "", False) for response in _SAMPLES]
    return [Case(response, form, right, answer, source, extra) for response, form, right in said]


def _load(file: str, name: str) -> tuple[Callable[..., object], ModuleType]:
    if file.startswith("pkg://"):
        module = importlib.import_module(file.removeprefix("pkg://"))
    else:
        spec = importlib.util.spec_from_file_location("custom_reward_fn", Path(file).expanduser())
        if spec is None or spec.loader is None or not Path(file).expanduser().is_file():
            raise FileNotFoundError("found no such file, expected Python")
        module = importlib.util.module_from_spec(spec)
        sys.modules["custom_reward_fn"] = module
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        named = [n for n, value in vars(module).items() if inspect.isfunction(value) and n[0] != "_"]
        raise ValueError(f"found functions {', '.join(named) or '(none)'}, expected {name}")
    return function, module


def answer_of(request: Mapping[str, object]) -> list[float]:
    """`scores_of`, and whatever it raises as a ValueError that names the line of the reward's file."""
    try:
        return scores_of(request)
    except Exception as error:  # a user's file raises anything
        text = " ".join(str(error).split()) or "no message"
        own = isinstance(error, (ValueError, FileNotFoundError)) and not _where(error)
        raise ValueError(text if own else f"{type(error).__name__}: {text}{_where(error)}") from error


def scores_of(request: Mapping[str, object]) -> list[float]:
    """Load the function and call it as the trainer does. Its errors pass; ValueError for its results."""
    function, module = _load(str(request["file"]), str(request["name"]))
    cases = [Case(**case) for case in cast("list[dict[str, Any]]", request["cases"])]
    kwargs = cast("Mapping[str, object]", request["kwargs"])
    if request["trainer"] == trainers.VERL:
        results = [_call_verl(function, case, kwargs) for case in cases]
        key = "score"
        _has_asked(results, cast("Mapping[str, str]", request["asked"]))
    else:
        results = _call_easyr1(
            function, cases, kwargs, request["type"] or getattr(module, "REWARD_TYPE", "batch")
        )
        key = "overall"
    return _numbers(results, key, plain=request["trainer"] == trainers.VERL)


def _call_verl(function: Callable[..., object], case: Case, kwargs: Mapping[str, object]) -> object:
    found = function(
        data_source=case.data_source,
        solution_str=case.response,
        ground_truth=case.answer,
        extra_info=dict(case.extra_info),
        **kwargs,
    )
    return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found


async def _awaited(found: object) -> object:
    return await cast("Awaitable[object]", found)


def _call_easyr1(
    function: Callable[..., object], cases: Sequence[Case], kwargs: Mapping[str, object], kind: object
) -> list[object]:
    inputs = [
        {"response": case.response, "response_length": len(case.response), "ground_truth": case.answer}
        for case in cases
    ]
    if kind == "sequential":
        return [function(item, **kwargs) for item in inputs]
    if kind != "batch":
        raise ValueError(f"REWARD_TYPE: found {kind!r}, expected batch or sequential")
    found = function(inputs, **kwargs)
    if not isinstance(found, list) or len(found) != len(inputs):
        size = f" of {len(found)}" if isinstance(found, list) else ""
        raise ValueError(f"found a {type(found).__name__}{size}, expected a list of {len(inputs)} scores")
    return found


def _numbers(results: Sequence[object], key: str, *, plain: bool) -> list[float]:
    """The score of each result. Raises ValueError for what the trainer would stop at, or misread."""
    scores: list[float] = []
    keys: set[str] | None = None
    for result in results:
        if not isinstance(result, Mapping):
            if not plain:
                raise ValueError(f"found a {type(result).__name__}, expected a dict with {key!r}")
            result = {key: result}
        if key not in result:
            raise ValueError(f"found keys {', '.join(map(str, result))}, expected {key!r} among them")
        if keys is not None and keys != set(result):
            raise ValueError(
                f"found keys {sorted(keys ^ set(result))} in some samples, expected the same in all"
            )
        keys = set(result)
        for name in [key] if plain else result:  # EasyR1 averages all of them
            if not _is_number(result[name]):
                raise ValueError(f"{name}: found {result[name]!r}, expected a number")
        scores.append(float(cast(float, result[key])))
    return scores


def _has_asked(results: Sequence[object], asked: Mapping[str, str]) -> None:
    """Raises ValueError where a result lacks what a setting of the run asks of it."""
    for result in results:
        found = list(result) if isinstance(result, Mapping) else ["score"]
        for name, setting in asked.items():
            if name not in found:
                raise ValueError(
                    f"found keys {', '.join(map(str, found))}, expected {name!r} among them, "
                    f"as {setting} asks"
                )


def _is_number(value: object) -> bool:
    try:
        return not isinstance(value, str) and math.isfinite(float(cast(float, value)))
    except (TypeError, ValueError):
        return False


def _where(error: BaseException) -> str:
    """The innermost line of the reward's own file."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename != __file__ and f.filename[0] != "<"
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
