"""The demo's page: one HTML file with the curves of the run's report, and answers before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from tpru_verl import runs
from tpru_verl.data.view import ShownText, page_environment, picture_of, shown_text
from tpru_verl.demo.evaluate import Score
from tpru_verl.eval.benchmarks import BENCHMARKS, load
from tpru_verl.eval.item import Item
from tpru_verl.eval.results import RowResult, read_results
from tpru_verl.files import write_bytes, write_text
from tpru_verl.runs.alarms import LEAST_AGREEMENT
from tpru_verl.runs.curves import COLOURS, Chart, DrawnRun, charts_of, svg_and_png
from tpru_verl.runs.history import HistoryReader
from tpru_verl.runs.logs import RunFiles
from tpru_verl.runs.report import FILTERS
from tpru_verl.terminal import line_of

CURVES = ("reward", "accuracy in validation", "agreement")  # of the report, those on the page

# (right before, right after) -> what became of a row, in the order in which the page shows them.
OUTCOMES = {
    (False, True): "newly right",
    (True, True): "still right",
    (False, False): "still wrong",
    (True, False): "newly wrong",
}

_SIDE = 224  # pixels of a thumbnail


class Correlation(TypedDict):
    """Of rollout and actor probabilities, over the steps of a run."""

    min: float
    mean: float


class Summary(TypedDict):
    """summary.json: scores pooled and per task, seconds per phase, and what the run was made with."""

    before: dict[str, Score]
    after: dict[str, Score]
    seconds: dict[str, float]
    steps: int
    seed: int
    peak_memory_gib: float
    rollout_actor_correlation: Correlation
    versions: dict[str, str]


@dataclass(frozen=True)
class _Shown(ShownText):
    """A held-out row in the form that `rows.jinja` shows, with both results."""

    answer: str
    before: RowResult
    after: RowResult


@dataclass(frozen=True)
class _Group:
    """All rows with one outcome: how many there are, and those shown."""

    outcome: str
    n: int
    shown: list[_Shown]


_Pair = tuple[RowResult, RowResult]  # of one row, before and after


def draw_curve(metrics: Path, png: Path) -> None:
    """Draw the reward curve of a metrics file. Raises ValueError where it is missing or without a reward."""
    write_bytes(png, svg_and_png(_charts(metrics)[0])[1])


def write_page(out: Path, *, next_commands: Sequence[str], rows: int = 12) -> Path:
    """Write OUT/page.html from the files of a demo run in `out`, and return its path.

    Reads summary.json, metrics.jsonl, before.jsonl, after.jsonl and rows/test.parquet. Of the held-out rows
    it shows `rows`, each outcome (newly right, still wrong, ...) as often as it is among all, but at least
    once where it occurs at all.

    Raises ValueError for a missing or broken file, for answers that are not about the same rows, and for
    fewer than 4 `rows`, the number of outcomes.
    """
    if rows < len(OUTCOMES):
        raise ValueError(f"rows: found {rows}, expected {len(OUTCOMES)} or more, one for each outcome")
    summary = _summary(out / "summary.json")
    environment = page_environment(Path(__file__).parent, Path(runs.__file__).parent)
    environment.filters |= {"points": _points, "duration": _duration, **FILTERS}
    groups = _groups(out, rows)
    html = environment.get_template("page.html.jinja").render(
        **summary,
        groups=groups,
        charts=[(chart, svg_and_png(chart)[0]) for chart in _charts(out / "metrics.jsonl")],
        colours=COLOURS,
        least_correlation=LEAST_AGREEMENT,
        next_commands=next_commands,
    )
    page = out / "page.html"
    write_text(page, html)
    return page


def _charts(metrics: Path) -> list[Chart]:
    """The curves that the page shows, the reward's first."""
    history = HistoryReader(RunFiles("demo", metrics, None, None)).update()
    charts = charts_of([DrawnRun("demo", history, {}, {})])[0]
    if not charts or charts[0].title != CURVES[0]:
        raise ValueError(
            f"{metrics}: found no {CURVES[0]}, expected one a step; did the trainer take a step?"
        )
    return [chart for chart in charts if chart.title in CURVES]


def _summary(path: Path) -> Summary:
    try:
        found: Summary = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: found {error}, expected one JSON object; run the demo again") from error
    if missing := _missing(Summary, found):
        raise ValueError(f"{path}: {missing[0]}: found nothing, expected a value; run the demo again")
    return found


def _groups(out: Path, rows: int) -> list[_Group]:
    """Rows by outcome with a fair choice of them, images included."""
    before, after = (_results(out / f"{name}.jsonl") for name in ("before", "after"))
    if not before or [row["id"] for row in before] != [row["id"] for row in after]:
        raise ValueError(
            f"{out / 'after.jsonl'}: id: found {len(after)} rows that are not the {len(before)} of "
            "before.jsonl in their order, expected the same; evaluate both on the same rows"
        )
    pairs: dict[str, list[_Pair]] = {outcome: [] for outcome in OUTCOMES.values()}
    for old, new in zip(before, after, strict=True):
        pairs[OUTCOMES[old["score"] == 1, new["score"] == 1]].append((old, new))
    shares = _shares({outcome: len(group) for outcome, group in pairs.items()}, rows)
    items = _items(out / "rows/test.parquet", before)
    return [
        _Group(outcome, len(group), [_show(items, *pair) for pair in _spread(group, shares[outcome])])
        for outcome, group in pairs.items()
    ]


def _shares(sizes: dict[str, int], rows: int) -> dict[str, int]:
    """How many of `rows` each outcome gets: one where it occurs, the rest in proportion."""
    n = sum(sizes.values())
    shares = {outcome: min(size, 1) for outcome, size in sizes.items()}
    for _ in range(min(rows, n) - sum(shares.values())):
        shares[max(sizes, key=lambda outcome: min(rows, n) * sizes[outcome] / n - shares[outcome])] += 1
    return shares


def _spread(pairs: Sequence[_Pair], count: int) -> list[_Pair]:
    """`count` of `pairs`, evenly spaced after sorting by task, so that tasks keep their proportion, too."""
    by_task = sorted(pairs, key=lambda pair: pair[0]["task"])
    return [by_task[(2 * i + 1) * len(by_task) // (2 * count)] for i in range(count)]


def _results(path: Path) -> list[RowResult]:
    try:
        return read_results(path)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _items(parquet: Path, results: Sequence[RowResult]) -> dict[str, Item]:
    """The rows that were asked, by id. Raises ValueError where the file has others."""
    try:
        items = {item.id: item for item in load(BENCHMARKS["tpru-test"], str(parquet)).items}
    except FileNotFoundError as error:
        raise _unreadable(parquet, error) from error
    for result in results:
        if result["id"] not in items or items[result["id"]].digest != result["digest"]:
            raise ValueError(
                f"{parquet}, row {result['id']}: found another row or none, expected the row that the model "
                "was asked about; run the demo again"
            )
    return items


def _show(items: Mapping[str, Item], before: RowResult, after: RowResult) -> _Shown:
    item = items[before["id"]]
    pictures = [picture_of(image, _SIDE) for image in item.images]
    text = shown_text(item.problem, pictures, item.options)
    return _Shown(**vars(text), answer=item.answer, before=before, after=after)


def _missing(form: type, found: object) -> list[str]:
    """Fields of a TypedDict that `found`, whatever it is, does not have."""
    return [key for key in form.__annotations__ if not isinstance(found, dict) or key not in found]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: {line_of(error)}, expected a file of the demo; run the demo again")


def _points(change: float) -> str:
    return f"{100 * change:+.1f}".replace("-", "\N{MINUS SIGN}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
