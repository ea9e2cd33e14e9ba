"""`tpru eval compare A B`: tell whether B is better than A on the same rows and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from tpru_verl.eval.results import RowResult, grouped, read_results, read_summary
from tpru_verl.redaction import HIDDEN
from tpru_verl.statistics import Difference, holm, paired

# Settings that must agree between two evaluations. Others, such as the engine, may differ.
SAME = (
    "style",
    "circular",
    "min_pixels",
    "max_pixels",
    "token_side",
    "n",
    "temperature",
    "top_p",
    "max_tokens",
    "after_reasoning",  # absent in older summaries, which had none
)
SURE = 0.05
# Of the options of vLLM in this process; others, such as quantization, make the model.
OF_REQUESTS = ("mm_processor_kwargs", "chat_template_kwargs")
LISTED = 10  # changed rows in the terminal; the file has all


@dataclass(frozen=True)
class Flip:
    """A row that is right in one run alone."""

    id: str
    task: str
    answer: str
    a: str | None
    b: str | None
    gained: bool


@dataclass(frozen=True)
class Compared:
    """One benchmark: accuracies, what differs pooled and per task, and the rows that changed."""

    benchmark: str
    title: str
    a: float
    b: float
    pooled: Difference
    tasks: dict[str, tuple[float, float, Difference]]
    flips: list[Flip]
    differing: list[str] = field(default_factory=list)  # what was not the same, where that was allowed


def compare(
    first: Path, second: Path, *, anyway: bool = False, samples: int = 10_000, seed: int = 0
) -> list[Compared]:
    """Each benchmark that both runs have. `anyway` takes the rows that both have, whatever else differs.

    Raises ValueError with all that differs where rows, prompts, pixels or sampling do.
    """
    a, b = read_summary(first), read_summary(second)
    names = [name for name in a["benchmarks"] if name in b["benchmarks"]]
    if not names:
        raise ValueError(
            f"{second}: found {', '.join(b['benchmarks'])}, expected one of {', '.join(a['benchmarks'])}, "
            f"as in {first}"
        )
    general = _settings_apart(a["settings"], b["settings"])
    pairs = [
        (name, read_results(first / f"{name}.jsonl"), read_results(second / f"{name}.jsonl"))
        for name in names
    ]
    found = [(name, one, two, [*general, *_differing(one, two)]) for name, one, two in pairs]
    refused = [f"{name}: {what}" for name, _, _, differing in found for what in differing]
    if refused and not anyway:
        raise ValueError(
            f"{first} and {second} did not ask the same, so that a difference says nothing about the models: "
            f"{'; '.join(dict.fromkeys(refused))}. --anyway compares the rows that both have"
        )
    return [
        _compared(name, a["benchmarks"][name]["title"], one, two, differing, samples, seed)
        for name, one, two, differing in found
    ]


def decisions(
    results: Sequence[Sequence[RowResult]], benchmarks: Mapping[str, Mapping[str, Any]], decide: Sequence[str]
) -> list[Compared]:
    """The same rows, decided in several ways: each way minus the first one.

    `results` has the rows of each of `benchmarks`, in its order: all ways of one benchmark, then the next.
    """
    names = [*benchmarks]
    found = []
    for i in range(0, len(names), len(decide)):
        for k in range(i + 1, i + len(decide)):
            title = f"{benchmarks[names[k]]['title']} minus {decide[0]}"
            found.append(_compared(names[k], title, results[i], results[k], [], 10_000, 0))
    return found


def _settings_apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    one, two = ({key: settings.get(key, False) for key in SAME} for settings in (a, b))
    found = [f"{key}: {one[key]} and {two[key]}" for key in SAME if one[key] != two[key]]
    one, two = _asked_with(a), _asked_with(b)
    return found + [
        f"--option {key}: {one.get(key, 'none')} and {two.get(key, 'none')}"
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    ]


def _asked_with(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options that act on template, pixels or sampling: all fields of requests, and few of vLLM's."""
    fields = settings.get("engine") == "endpoint"
    return {
        key: value
        for key, value in settings.get("options", {}).items()
        if value != HIDDEN and (fields or key in OF_REQUESTS)
    }


def _differing(one: Sequence[RowResult], two: Sequence[RowResult]) -> list[str]:
    digests = [{line["id"]: line["digest"] for line in lines} for lines in (one, two)]
    found = []
    if apart := sorted(digests[0].keys() ^ digests[1].keys()):
        found.append(f"rows: {len(apart)} in one alone, such as {apart[0]}")
    common = digests[0].keys() & digests[1].keys()
    if changed := sorted(name for name in common if digests[0][name] != digests[1][name]):
        found.append(f"rows: {len(changed)} of one id with other content, such as {changed[0]}")
    prompts = [{line["id"]: _prompts(line) for line in lines if line["samples"]} for lines in (one, two)]
    asked = prompts[0].keys() & prompts[1].keys()
    if others := sorted(name for name in asked if prompts[0][name] != prompts[1][name]):
        found.append(f"prompts: {len(others)} differ, such as that of {others[0]}")
    return found


def _prompts(line: RowResult) -> set[tuple[int, str]]:
    return {(sample["rotation"], sample["prompt"]) for sample in line["samples"]}


def _compared(
    name: str,
    title: str,
    one: Sequence[RowResult],
    two: Sequence[RowResult],
    differing: list[str],
    samples: int,
    seed: int,
) -> Compared:
    other = {line["id"]: line for line in two}
    rows = [
        (line, other[line["id"]])
        for line in one
        if line["id"] in other and other[line["id"]]["digest"] == line["digest"]
    ]
    if not rows:
        raise ValueError(f"{name}: found no row that both runs have, expected at least 1")

    def difference(pairs: Sequence[tuple[RowResult, RowResult]]) -> tuple[float, float, Difference]:
        a, b = ([pair[side]["score"] for pair in pairs] for side in (0, 1))
        found = paired(a, b, [line["source"] for line, _ in pairs], samples=samples, seed=seed)
        return sum(a) / len(a), sum(b) / len(b), found

    pairs = {line["id"]: (line, two) for line, two in rows}
    by_task = grouped([line for line, _ in rows], "task")
    tasks = {task: difference([pairs[line["id"]] for line in lines]) for task, lines in by_task.items()}
    tasks = tasks if len(tasks) > 1 else {}
    corrected = holm([found.p for _, _, found in tasks.values()])
    tasks = {
        task: (a, b, replace(found, holm=p))
        for (task, (a, b, found)), p in zip(tasks.items(), corrected, strict=True)
    }
    flips = [
        Flip(a["id"], a["task"], a["answer"], a["parsed"], b["parsed"], b["score"] > a["score"])
        for a, b in rows
        if a["score"] != b["score"]
    ]
    first, second, pooled = difference(rows)
    return Compared(name, title, first, second, pooled, tasks, flips, differing)


def verdict(found: Compared) -> str:
    """One sentence: a difference counts as real where p is below 0.05 and the interval leaves out 0."""
    pooled = found.pooled
    points = f"{100 * pooled.mean:+.1f} points [{100 * pooled.low:+.1f}, {100 * pooled.high:+.1f}]"
    points += f", p {pooled.p:.4f}"
    if pooled.p < SURE and pooled.low > 0:
        return f"{found.title}: B is better, {points}"
    if pooled.p < SURE and pooled.high < 0:
        return f"{found.title}: B is worse, {points}"
    shown = f"{pooled.n:,} rows of {pooled.clusters:,} source{'s' * (pooled.clusters > 1)}"
    return f"{found.title}: no difference that {shown} can show, {points}"


def tables(found: Sequence[Compared]) -> list[Table]:
    """Tables for a terminal: the differences, and the first rows that changed."""
    made = []
    for one in found:
        table = Table(title=f"{one.title}: B minus A on {one.pooled.n:,} rows", title_justify="left")
        for column in ("", "rows", "A", "B", "points", "95 %", "p", "p (Holm)", "McNemar", "gained", "lost"):
            table.add_column(column, justify="left" if not column else "right")
        for task, (a, b, difference) in one.tasks.items():
            table.add_row(task.replace("_", " "), *_cells(a, b, difference))
        table.add_row("all", *_cells(one.a, one.b, one.pooled), style="bold")
        table.caption = "p: sources, A and B swapped at random; McNemar takes rows for independent"
        made.append(table)
        if one.flips:
            made.append(_flips(one))
    return made


def _cells(a: float, b: float, found: Difference) -> tuple[str, ...]:
    p: Callable[[float | None], str] = lambda value: "" if value is None else f"{value:.4f}"  # noqa: E731
    return (
        f"{found.n:,}",
        f"{a:.1%}",
        f"{b:.1%}",
        f"{100 * found.mean:+.1f}",
        f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
        p(found.p),
        p(found.holm),
        p(found.mcnemar),
        str(found.gained),
        str(found.lost),
    )


def _flips(one: Compared) -> Table:
    table = Table(title=f"{len(one.flips)} rows changed", title_justify="left")
    for column in ("row", "task", "right answer", "A", "B", ""):
        table.add_column(column)
    for flip in one.flips[:LISTED]:
        said = [answer or "not to be read" for answer in (flip.a, flip.b)]
        table.add_row(flip.id, flip.task, flip.answer, *said, "gained" if flip.gained else "lost")
    if len(one.flips) > LISTED:
        table.caption = f"the first {LISTED}; --json writes all"
    return table


def as_json(found: Sequence[Compared]) -> dict[str, Any]:
    """Everything, all changed rows included."""
    return {
        one.benchmark: {
            "a": one.a,
            "b": one.b,
            "difference": asdict(one.pooled),
            "tasks": {
                task: {"a": a, "b": b, "difference": asdict(difference)}
                for task, (a, b, difference) in one.tasks.items()
            },
            "flips": [asdict(flip) for flip in one.flips],
            "differing": one.differing,
            "verdict": verdict(one),
        }
        for one in found
    }
