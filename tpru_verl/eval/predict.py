"""`tpru eval predict`: the answers of a model to rows that have none, as a table."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from string import ascii_uppercase

from tpru_verl.data.source.forms import Keys, answers_in
from tpru_verl.data.source.named import numbers_of, ranks_of
from tpru_verl.data.source.parts import parts_of
from tpru_verl.eval.asking import Clock, EvalOptions, ask, say
from tpru_verl.eval.benchmarks import Loaded
from tpru_verl.eval.benchmarks.base import load
from tpru_verl.eval.benchmarks.own import own
from tpru_verl.eval.commands import VALUES
from tpru_verl.eval.decide import SCORE
from tpru_verl.eval.engines.base import Engine
from tpru_verl.eval.failures import Failures, failures_of
from tpru_verl.eval.item import Item
from tpru_verl.eval.results import RowResult
from tpru_verl.eval.store import Store
from tpru_verl.files import locked, write_text
from tpru_verl.sample import IMAGE_TAG, Task

MARKS = {".csv": ",", ".tsv": "\t"}
_FORMULAS = ("=", "+", "-", "@")  # https://owasp.org/www-community/attacks/CSV_Injection


@dataclass(frozen=True)
class Predicted:
    """What the table has: the number of its answers, and why its other cells are empty.

    `unread` has the ids of rows whose response has no answer that can be read.
    """

    answers: int
    failures: dict[str, Failures]
    unread: list[str]


def columns_of(out: Path, named: Mapping[str, str], decide: str) -> dict[str, str]:
    """Name of each column -> which of VALUES it holds. Raises ValueError for what cannot be written."""
    if out.suffix not in MARKS:
        raise ValueError(f"--out: found {out.suffix or 'no suffix'!r}, expected {' or '.join(MARKS)}")
    if unknown := [value for value in named.values() if value not in VALUES]:
        raise ValueError(f"--column: found {unknown[0]!r}, expected one of {', '.join(VALUES)}")
    if "probability" in named.values() and decide != SCORE:
        raise ValueError(f"--column: found probability with --decide {decide}, expected --decide score")
    default = ("id", "answer", "probability") if decide == SCORE else ("id", "answer")
    return dict(named) or {name: name for name in default}


def load_rows(source: str, keys: Keys) -> Loaded:
    """The rows to answer, without their own answers, which may be placeholders.

    A broken row stays among them, so that the table has its id. Raises as `load`, and ValueError if all rows
    are broken and for an id that comes twice.
    """
    if unread := dict.fromkeys(name for part in parts_of(source) for name in answers_in(part)):
        say(f"{source}: answers are not read: {', '.join(unread)}")
    ((benchmark, name),) = own([source], replace(keys, answer="", answered=False))
    loaded = load(benchmark, name)
    broken = [item.broken for item in loaded.items if item.broken]
    if broken:
        said = f"{len(broken):,} of {len(loaded.items):,} rows cannot be asked, the first: {broken[0]}"
        if len(broken) == len(loaded.items):
            raise ValueError(said)
        say(f"{said}; their cells stay empty", "yellow")
    if loaded.repeated:
        raise ValueError(f"{source}: found the id {loaded.repeated[0]!r} twice, expected one row for each id")
    return replace(loaded, items=[_with_an_answer(item) for item in loaded.items])


def _with_an_answer(item: Item) -> Item:
    """The item with any valid answer: the grader reads answers of its kind.

    It is an option; or an order of letters, where the text says "A-D" or the options label all pictures of a
    reordering row; or an order of numbers.
    """
    letters = ascii_uppercase[: len(item.images)]
    labelled = [*item.options.items()] == [(letter, IMAGE_TAG) for letter in letters]
    if item.task == Task.TEMPORAL_REORDERING.value and labelled:
        return replace(item, answer=letters)
    span = rf"\b{letters[:1]}\s?[-\u2013]\s?{letters[-1:]}\b"
    lettered = len(letters) > 1 and re.search(span, item.problem)
    order = letters if lettered else " ".join(str(i + 1) for i in range(len(item.images)))
    return replace(item, answer=next(iter(item.options), order))


def predict(
    loaded: Loaded,
    engine: Engine,
    options: EvalOptions,
    out: Path,
    columns: Mapping[str, str],
    kind: str | None,
) -> Predicted:
    """Write the table. The cell of a row without an answer is empty.

    Replies are kept beside the table, in a file that ends in `.responses.jsonl`: a second call asks only for
    those that are missing. `kind` is one of ANSWER_KINDS. Raises as `evaluate`.
    """
    try:
        with locked(out):
            store = Store(responses_of(out))
            try:
                results = ask(loaded, engine, options, store, Clock())
            finally:
                store.close()
            _write(out, columns, results, kind)
    finally:
        engine.close()
    unread = [row["id"] for row in results if row["failed"] is None and not _answer(row, kind)]
    failures = failures_of(loaded.items, results)
    answers = len(results) - len(unread) - sum(one["rows"] for one in failures.values())
    return Predicted(answers, failures, unread)


def responses_of(out: Path) -> Path:
    """The file that keeps the replies to a table."""
    return out.with_suffix(".responses.jsonl")


def _write(out: Path, columns: Mapping[str, str], results: Sequence[RowResult], kind: str | None) -> None:
    text = StringIO(newline="")
    writer = csv.writer(text, delimiter=MARKS[out.suffix], lineterminator="\n")
    writer.writerow(columns)
    for result in results:
        values = _values(result, kind)
        writer.writerow([values[value] for value in columns.values()])
    write_text(out, text.getvalue())


def _harmless(response: str) -> str:
    """A model's words with a quote before what a spreadsheet would run as a formula."""
    return f"'{response}" if response.lstrip().startswith(_FORMULAS) else response


def _values(result: RowResult, kind: str | None) -> dict[str, str]:
    sample = result["samples"][0] if result["samples"] else None
    chances = sample["probabilities"] if sample else None
    return {
        "id": result["id"],
        "answer": _answer(result, kind),
        "probability": f"{max(chances.values()):.6f}" if chances else "",
        "response": _harmless(sample["response"]) if sample else "",
    }


def _answer(result: RowResult, kind: str | None) -> str:
    """The answer as `kind` writes it: [3, 1, 4, 2] for orders and ranks, else as the grader reads it."""
    said = result["parsed"] or ""
    numbers = numbers_of(said) if kind in ("orders", "ranks") else None
    if numbers is None:
        return said
    return str(ranks_of(numbers) if kind == "ranks" else numbers)
