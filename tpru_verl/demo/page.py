"""The demo's reward curve and its page: one HTML file that holds all that it shows, pictures too."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from tpru_verl.data.view import ShownText, page_environment, picture_of, shown_text
from tpru_verl.demo.evaluate import Score
from tpru_verl.eval.benchmarks import BENCHMARKS, load
from tpru_verl.eval.item import Item
from tpru_verl.eval.results import RowResult, read_results
from tpru_verl.files import write_bytes, write_text
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REWARD = "critic/score/mean"
CORRELATION = "training/rollout_actor_probs_pearson_corr"
LEAST_CORRELATION = 0.95
WINDOW = 11  # steps that the smoothed curve averages over, the step itself in the middle

# (right before, right after) -> what became of a row, in the order in which the page shows them.
OUTCOMES = {
    (False, True): "newly right",
    (True, True): "still right",
    (False, False): "still wrong",
    (True, False): "newly wrong",
}

_ACCURACY = re.compile(r"val-core/(?:.*/)?([^/]+)/acc/mean@\d+")
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


class _Step(TypedDict):
    step: int
    data: dict[str, object]


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


@dataclass(frozen=True)
class _Colours:
    ground: str
    ink: str
    grid: str
    reward: str
    alarm: str
    tasks: tuple[str, ...]


_Pair = tuple[RowResult, RowResult]  # of one row, before and after

# The page's own colours, light and dark.
_LIGHT = _Colours("#ffffff", "#3d4350", "#e3e6ec", "#2457c5", "#b42318", ("#b35c00", "#0f7b6c", "#8a3ffc"))
_DARK = _Colours("#1b1e25", "#c3c8d2", "#333843", "#86abff", "#ff8f80", ("#f0a860", "#5ccbb8", "#c4a1ff"))


def draw_curve(metrics: Path, png: Path) -> None:
    """Draw what veRL's file logger wrote: reward and validation accuracy above, correlation below.

    `metrics` holds {"step": N, "data": {name: number}} a line. The PNG is 1800 x 1080 pixels, made to be
    read at half that size.

    Raises ValueError where `metrics` is missing, broken or without a reward.
    """
    write_bytes(png, _curve(metrics, _LIGHT))


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
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {"points": _points, "duration": _duration}
    groups = _groups(out, rows)
    html = environment.get_template("page.html.jinja").render(
        **summary,
        groups=groups,
        curve=_uri(_curve(out / "metrics.jsonl", _LIGHT)),
        dark_curve=_uri(_curve(out / "metrics.jsonl", _DARK)),
        least_correlation=LEAST_CORRELATION,
        next_commands=next_commands,
    )
    page = out / "page.html"
    write_text(page, html)
    return page


def _curve(metrics: Path, colours: _Colours) -> bytes:
    from matplotlib.figure import Figure

    lines = _steps(metrics)
    steps, rewards = _series(lines, REWARD)
    if not rewards:
        raise ValueError(f"{metrics}: found no {REWARD}, expected one a step; did the trainer take a step?")
    figure = Figure(figsize=(9, 5.4), dpi=200, facecolor=colours.ground, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for axes in (above, below):
        _dress(axes, colours)
    above.plot(steps, rewards, color=colours.reward, alpha=0.3, linewidth=1, label="reward, each step")
    smooth = _smooth(rewards)
    above.plot(steps, smooth, color=colours.reward, linewidth=2.4, label=f"reward, mean of {WINDOW} steps")
    tasks = {key: match[1] for line in lines for key in line["data"] if (match := _ACCURACY.fullmatch(key))}
    for key, colour, marker in zip(sorted(tasks), colours.tasks, "os^", strict=False):
        label = f"accuracy, {tasks[key].replace('_', ' ')}"
        above.plot(
            *_series(lines, key), color=colour, marker=marker, markersize=6, linestyle=":", label=label
        )
    above.set_ylim(0, 1)
    above.set_ylabel("mean reward" + (", held-out accuracy" if tasks else ""))
    above.legend(loc="best", fontsize=9, frameon=False, labelcolor=colours.ink)
    _draw_correlation(below, lines, colours)
    figure.align_ylabels()
    return _png(figure)


def _draw_correlation(axes: Axes, lines: list[_Step], colours: _Colours) -> None:
    steps, values = _series(lines, CORRELATION)
    axes.plot(steps, values, color=colours.reward, linewidth=1.6)
    axes.axhline(LEAST_CORRELATION, color=colours.alarm, linewidth=1.2, linestyle="--")
    low = [(step, value) for step, value in zip(steps, values, strict=True) if value < LEAST_CORRELATION]
    axes.plot([s for s, _ in low], [v for _, v in low], "x", color=colours.alarm, markersize=5)
    axes.set_ylim(min([0.93, *(value - 0.02 for value in values)]), 1.005)
    axes.set_ylabel("rollout, actor\ncorrelation")
    axes.set_xlabel("GRPO step")
    words = f"{LEAST_CORRELATION}: below it, vLLM and the trainer do not see the same"
    where = {"xy": (0.01, LEAST_CORRELATION), "xycoords": axes.get_yaxis_transform()}
    offset = {"xytext": (0, 3), "textcoords": "offset points"}
    axes.annotate(words, **where, **offset, color=colours.alarm, fontsize=8)


def _dress(axes: Axes, colours: _Colours) -> None:
    axes.set_facecolor(colours.ground)
    axes.grid(color=colours.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours.ink, labelsize=9, length=0)
    axes.xaxis.label.set_color(colours.ink)
    axes.yaxis.label.set_color(colours.ink)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colours.ink)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _series(lines: Sequence[_Step], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric where it is a finite number: the logger writes NaN as null."""
    found = [
        (line["step"], float(value))
        for line in lines
        if isinstance(value := line["data"].get(name), (int, float)) and math.isfinite(value)
    ]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over WINDOW steps around each; at the ends over those that there are."""
    half = WINDOW // 2
    return [float(np.mean(values[max(at - half, 0) : at + half + 1])) for at in range(len(values))]


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


def _steps(path: Path) -> list[_Step]:
    """The lines of a metrics file."""
    rows: list[_Step] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: found {error}, expected a JSON object") from error
        if missing := _missing(_Step, row):
            raise ValueError(f"{path}, line {number}: {missing[0]}: found nothing, expected a value")
        rows.append(row)
    return rows


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


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _points(change: float) -> str:
    return f"{100 * change:+.1f}".replace("-", "\N{MINUS SIGN}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
