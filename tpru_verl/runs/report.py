"""`tpru report`: a run, or several laid over each other, as one HTML file and pictures of the curves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median

from tpru_verl.files import write_bytes, write_text
from tpru_verl.runs.alarms import Alarm, alarms
from tpru_verl.runs.curves import COLOURS, Chart, DrawnRun, charts_of, svg_and_png
from tpru_verl.runs.history import HistoryReader
from tpru_verl.runs.logs import RARE_PHASES, History, RunFiles
from tpru_verl.runs.rollouts import Graded
from tpru_verl.runs.rows import RunRows
from tpru_verl.runs.shown import Section, sections_of, steps_of
from tpru_verl.statistics import Share, mean_of, share

ENDS = 10  # steps that the first and the last value of a table average over


@dataclass(frozen=True)
class Line:
    """Grades of one task or scene."""

    name: str
    reward: Share
    accuracy: Share
    partial: Share
    format: float
    before: Share | None  # accuracy at the first validation


@dataclass(frozen=True)
class Grades:
    """Tables of grades: `title` says of which responses."""

    title: str
    by_task: list[Line]
    by_scene: list[Line]
    before: str  # what `Line.before` is called; "" where there is none


class RunReport:
    """What is said of one run; `renew` reads what was written since."""

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self._reader = HistoryReader(files)
        self.renew()

    def renew(self) -> bool:
        """Read what is new; False where there is nothing. Raises ValueError where the run has no step yet."""
        found = self._reader.update()
        if not found.steps:
            raise ValueError(self.files.without_steps())
        old = self.__dict__.get("history")
        self.history: History = found
        for name in ("alarms", "grades", "sections", "rows"):
            self.__dict__.pop(name, None)
        return old is None or old.steps != found.steps

    @property
    def run(self) -> DrawnRun:
        return DrawnRun(self.files.name, self.history, self._reader.rollouts, self._reader.validation)

    @cached_property
    def rows(self) -> RunRows:
        return RunRows(self._reader.settings, self.files.started_in)

    @cached_property
    def alarms(self) -> list[Alarm]:
        return alarms(self.history)

    @property
    def notes(self) -> list[str]:
        return [*self.history.notes, *self.rows.notes]

    @property
    def end(self) -> int:
        """Steps that `ends` averages over: ENDS, in short runs half of them."""
        return max(1, min(ENDS, len(self.history.trained) // 2))

    @property
    def ends(self) -> list[tuple[str, float, float]]:
        """Metric, its mean over the first and over the last steps."""
        found: list[tuple[str, float, float]] = []
        for name in ("reward", "accuracy", "format rate", "response length", "entropy", "seconds"):
            values = [v for step in self.history.trained if (v := step.get(name)) is not None and v == v]
            if values:
                found.append((name, fmean(values[: self.end]), fmean(values[-self.end :])))
        return found

    @cached_property
    def grades(self) -> list[Grades]:
        """The last validation beside the first, and the last quarter of the training."""
        tables: list[Grades] = []
        if validated := sorted(self._reader.validation):
            first, last = validated[0], validated[-1]
            before = self._reader.validation[first] if first != last else []
            named = f"Accuracy at step {first}" if before else ""
            tables.append(
                self._grades(f"Validation at step {last}", self._reader.validation[last], before, named)
            )
        if steps := sorted(self._reader.rollouts):
            late = steps[-max(1, len(steps) // 4) :]
            answers = [answer for step in late for answer in self._reader.rollouts[step]]
            tables.append(self._grades(f"Training, {steps_of(late)}", answers, [], ""))
        return tables

    def _grades(self, title: str, answers: Sequence[Graded], before: Sequence[Graded], named: str) -> Grades:
        now, was = self._placed(answers), self._placed(before)
        by_task = _lines([(a.task, a, source) for a, _, source in now], [(a.task, a, s) for a, _, s in was])
        by_scene = _lines(
            [(scene, a, s) for a, scene, s in now if scene], [(scene, a, s) for a, scene, s in was if scene]
        )
        return Grades(title, by_task, by_scene, named)

    def _placed(self, answers: Sequence[Graded]) -> list[tuple[Graded, str, str]]:
        """Each with the scene of its row and what that was cut from, the prompt where it is not known."""
        rows = {a.group: self.rows.find(a) for a in answers}
        found: list[tuple[Graded, str, str]] = []
        for answer in answers:
            row = rows[answer.group]
            found.append((answer, row.scene if row else "", (row and row.source) or answer.group))
        return found

    @property
    def phases(self) -> list[tuple[str, float, float]]:
        """Phase, its median seconds where it takes place, its share of all the time."""
        steps = self.history.trained
        total = sum(step.whole_seconds or 0.0 for step in steps)
        names = dict.fromkeys(name for step in steps for name in step.phases)
        found: list[tuple[str, float, float]] = []
        for name in names:
            seconds = [step.phases[name] for step in steps if name in step.phases]
            found.append((name, median(seconds), sum(seconds) / total if total else 0.0))
        return sorted(found, key=lambda phase: -phase[2])

    @cached_property
    def sections(self) -> list[Section]:
        return sections_of(self._reader, self.rows)


_Named = tuple[str, Graded, str]  # a task or scene, a response to a row of it, what that row was cut from


def _lines(answers: Sequence[_Named], before: Sequence[_Named]) -> list[Line]:
    names = sorted({name for name, _, _ in answers})
    groups = [([each for each in part if each[0] == name]) for name in names for part in (answers, before)]
    pairs = list(zip(names, groups[::2], groups[1::2], strict=True))
    if len(names) > 1:
        pairs.append(("all", list(answers), list(before)))
    return [
        Line(
            name,
            mean_of([answer.reward for _, answer, _ in now], [source for _, _, source in now]),
            _share(now, "accuracy"),
            _share(now, "partial"),
            fmean(answer.format for _, answer, _ in now),
            _share(was, "accuracy") if was else None,
        )
        for name, now, was in pairs
    ]


def _share(answers: Sequence[_Named], what: str) -> Share:
    return share([getattr(a, what) for _, a, _ in answers], [source for _, _, source in answers])


def write_report(reports: Sequence[RunReport], out: Path, *, renewed: float = 0) -> Path:
    """Write `out`, one HTML file that holds all that it shows, and a PNG of each curve in a folder beside it.

    `renewed`: seconds after which a browser reads the page again; 0 for a run that has ended.
    The folder is called like `out`, with `-curves` for `.html`. Raises OSError where nothing can be written.
    """
    from tpru_verl.data.view import page_environment

    charts, missing = charts_of([report.run for report in reports])
    drawn = [(chart, *svg_and_png(chart)) for chart in charts]
    environment = page_environment(Path(__file__).parent)
    environment.filters |= FILTERS
    html = environment.get_template("report.html.jinja").render(
        reports=reports,
        title=", ".join(report.files.name for report in reports),
        charts=[(chart, svg) for chart, svg, _ in drawn],
        colours=COLOURS,
        missing=missing,
        rare=RARE_PHASES,
        renewed=round(renewed),
    )
    write_text(out, html)
    for chart, _, png in drawn:
        write_bytes(out.with_name(f"{out.stem}-curves") / f"{_file_name(chart)}.png", png)
    return out


def _file_name(chart: Chart) -> str:
    return re.sub(r"[^a-z0-9]+", "-", chart.title.lower()).strip("-")


def figure(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


FILTERS = {"figure": figure, "title_of": lambda words: words[:1].upper() + words[1:]}
