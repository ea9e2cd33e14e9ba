"""The curves of one or several runs: which there are, and their pictures as SVG and PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tpru_verl.runs.alarms import LEAST_AGREEMENT
from tpru_verl.runs.logs import History, Step, accuracies, clipped
from tpru_verl.runs.rollouts import Graded
from tpru_verl.statistics import share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW = 11  # steps that a smoothed curve averages over, the step itself in the middle
BINS, LEAST_BINS = 24, 4  # points of a curve with intervals
LARGEST = 1e30  # of a value that is drawn: NaN and infinities are not, nor what no axis can hold
_INK, _GRID, _LIMIT = "#3d4350", "#e3e6ec", "#b42318"
# Of series, light; the page replaces each by a variable of its style, which has a dark value, too.
COLOURS = ("#2457c5", "#b35c00", "#0f7b6c", "#8a3ffc", "#c2185b", "#5d6b1f", "#00728f", "#6b4f3a")
VARIABLES = {_INK: "--soft", _GRID: "--line", _LIMIT: "--wrong"} | {
    colour: f"--series-{i}" for i, colour in enumerate(COLOURS)
}


@dataclass(frozen=True)
class Series:
    """Points of a line; `low` and `high` are 95 % intervals where there are any."""

    label: str
    steps: list[int]
    values: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """`limit`: a value that the curve should not cross; `whole`: shares, drawn from 0 to 1."""

    title: str
    series: list[Series]
    whole: bool = False
    limit: float | None = None
    caption: str = ""


@dataclass(frozen=True)
class DrawnRun:
    """What curves are drawn from."""

    name: str
    history: History
    rollouts: Mapping[int, Sequence[Graded]]
    validation: Mapping[int, Sequence[Graded]]


# Curves of one metric: title, how to record it, whether it is a share, what is worth saying.
_PLAIN = (
    ("reward", "", False, ""),
    ("format rate", "trainer.rollout_data_dir=FOLDER", True, ""),
    (
        "groups without variance",
        "trainer.rollout_data_dir=FOLDER",
        True,
        "Groups of one prompt whose rewards are all equal: they teach nothing.",
    ),
    ("response length", "", False, "Tokens, mean of a step."),
    ("clipped responses", "a recipe beside the metrics, for data.max_response_length", True, ""),
    ("KL loss", "actor_rollout_ref.actor.use_kl_loss=true", False, "Of the policy and the reference model."),
    ("policy KL", "", False, "Of the policy before and after the updates of a step."),
    ("entropy", "actor_rollout_ref.actor.calculate_entropy=true", False, ""),
    ("gradient norm", "", False, "Before it is clipped."),
    (
        "agreement",
        "actor_rollout_ref.rollout.calculate_log_probs=true",
        False,
        "Correlation of the probabilities that rollout engine and trainer compute for the same tokens.",
    ),
    ("seconds", "", False, "Of a step without validation and saving."),
    ("tokens a second", "", False, "On each accelerator, prompts included."),
    ("host memory", "", False, "GB in use on the node of the first worker."),
    ("accelerator memory", "", False, "GB allocated at most."),
)


def charts_of(runs: Sequence[DrawnRun]) -> tuple[list[Chart], dict[str, str]]:
    """All curves that the runs have; and what no run records -> the setting that records it, if any."""
    charts: list[Chart] = []
    missing: dict[str, str] = {}
    for title, setting, whole, caption in _PLAIN:
        series = [Series(run.name, *points) for run in runs if (points := _points(run, title))[0]]
        if series:
            limit = LEAST_AGREEMENT if title == "agreement" else None
            charts.append(Chart(title, series, whole, limit, caption))
        else:
            missing[title] = setting
        if title == "reward":
            charts += _graded_charts(runs, missing)
    return charts, missing


def _points(run: DrawnRun, title: str) -> tuple[list[int], list[float]]:
    if title == "clipped responses":
        return _finite(run.history.trained, lambda step: clipped(step, run.history.response_limit))
    if title == "seconds":
        return _finite(run.history.trained, lambda step: step.usual_seconds)
    return _finite(run.history.trained, lambda step: step.get(title))


def _finite(steps: Iterable[Step], value: Callable[[Step], float | None]) -> tuple[list[int], list[float]]:
    found = [(step.number, v) for step in steps if (v := value(step)) is not None and abs(v) < LARGEST]
    return [number for number, _ in found], [v for _, v in found]


def _graded_charts(runs: Sequence[DrawnRun], missing: dict[str, str]) -> list[Chart]:
    """Accuracy and partial credit by task, in training and validation."""
    setting = "trainer.rollout_data_dir=FOLDER"
    found = [
        *_by_task(runs, "accuracy in training", lambda run: _binned(run.rollouts, "accuracy")),
        *_by_task(runs, "partial credit in training", lambda run: _binned(run.rollouts, "partial")),
    ]
    if not found:
        missing["accuracy and partial credit in training, by task"] = setting
    validated = _by_task(runs, "accuracy in validation", _validated)
    if not validated:
        missing["accuracy in validation"] = "trainer.test_freq=N"
    return [*found, *validated]


def _by_task(
    runs: Sequence[DrawnRun], title: str, lines: Callable[[DrawnRun], dict[str, Series]]
) -> list[Chart]:
    """One chart with a line a task; for several runs a chart a task with a line a run."""
    found = {run.name: lines(run) for run in runs}
    banded = any(line.low for run in found.values() for line in run.values())
    caption = "Bands are 95 % intervals, clustered by prompt." if banded else ""
    if len(runs) == 1:
        series = list(found[runs[0].name].values())
        return [Chart(title, series, whole=True, caption=caption)] if series else []
    tasks = dict.fromkeys(chain.from_iterable(found.values()))
    charts: list[Chart] = []
    for task in tasks:
        series = [
            Series(name, line.steps, line.values, line.low, line.high)
            for name, by_task in found.items()
            if (line := by_task.get(task))
        ]
        charts.append(Chart(f"{title}: {task.replace('_', ' ')}", series, whole=True, caption=caption))
    return charts


def _binned(answers: Mapping[int, Sequence[Graded]], what: str) -> dict[str, Series]:
    """Task -> means over some steps each."""
    steps = sorted(answers)
    bins = min(BINS, max(LEAST_BINS, len(steps) // 5), len(steps))
    lines: dict[str, Series] = {}
    for part in np.array_split(np.array(steps), bins) if steps else []:
        here = [answer for step in part for answer in answers[int(step)]]
        for task in dict.fromkeys(answer.task for answer in here):
            line = lines.setdefault(task, Series(task.replace("_", " "), [], [], [], []))
            _add(line, round(float(np.mean(part))), [a for a in here if a.task == task], what)
    return dict(sorted(lines.items()))


def _add(line: Series, step: int, answers: Sequence[Graded], what: str) -> None:
    found = share([getattr(answer, what) for answer in answers], [answer.group for answer in answers])
    line.steps.append(step)
    for values, value in ((line.values, found.mean), (line.low, found.low), (line.high, found.high)):
        values.append(value)


def _validated(run: DrawnRun) -> dict[str, Series]:
    """Task -> accuracy at each validation, with intervals where the answers were kept."""
    lines: dict[str, Series] = {}
    for step, answers in sorted(run.validation.items()):
        for task in sorted({answer.task for answer in answers}):
            line = lines.setdefault(task, Series(task.replace("_", " "), [], [], [], []))
            _add(line, step, [answer for answer in answers if answer.task == task], "accuracy")
    if lines:
        return lines
    for step in run.history.steps:
        for task, value in accuracies(step).items():
            if math.isfinite(value):
                line = lines.setdefault(task, Series(task.replace("_", " "), [], []))
                line.steps.append(step.number)
                line.values.append(value)
    return lines


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over WINDOW steps around each; at the ends over those that there are."""
    half = WINDOW // 2
    return [float(np.mean(values[max(at - half, 0) : at + half + 1])) for at in range(len(values))]


def svg_and_png(chart: Chart) -> tuple[str, bytes]:
    """A chart as SVG in colours of the page's style, and as PNG with title and legend."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Names of runs and tasks are text: a dollar sign in them begins no formula.
    with rc_context(
        {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "svg.hashsalt": "tpru"}
    ):
        # A fixed layout: one that is computed takes as long as all else.
        figure = Figure(figsize=(4.8, 2.6))
        axes = figure.add_axes((0.13, 0.17, 0.85, 0.80))
        _draw(axes, chart)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
        axes.set_position((0.13, 0.17, 0.85, 0.70))
        axes.set_title(chart.title[:1].upper() + chart.title[1:], color=_INK, fontsize=10, loc="left")
        if len(chart.series) > 1:
            axes.legend(fontsize=7, frameon=False, labelcolor=_INK)
        png = io.BytesIO()
        # Packed harder they would be a fifth smaller, and take half as long again.
        figure.savefig(png, format="png", dpi=200, facecolor="white", pil_kwargs={"compress_level": 1})
    return _inline(text.getvalue()), png.getvalue()


_METADATA = ("Creator", "Date", "Format", "Type")


def _draw(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    for line, colour in zip(chart.series, COLOURS * len(chart.series), strict=False):
        marked = "o" if len(line.steps) <= BINS else None
        if line.low:
            axes.fill_between(line.steps, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        elif len(line.steps) > 3 * WINDOW:
            axes.plot(line.steps, line.values, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(line.steps, smooth(line.values), color=colour, linewidth=1.8, label=line.label)
            continue
        axes.plot(
            line.steps,
            line.values,
            color=colour,
            linewidth=1.8,
            label=line.label,
            marker=marked,
            markersize=3,
        )
    if chart.limit is not None:
        axes.axhline(chart.limit, color=_LIMIT, linewidth=1, linestyle="--")
    if chart.whole:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    axes.set_xlabel("step", color=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_INK)


def _inline(svg: str) -> str:
    """matplotlib's SVG as part of a page: no prologue, no fixed size, no font, colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
