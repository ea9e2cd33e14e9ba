"""A report for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tpru_verl.runs.curves import charts_of
from tpru_verl.runs.report import Grades, RunReport, figure
from tpru_verl.runs.shown import Section
from tpru_verl.statistics import Share
from tpru_verl.terminal import percent


def texts(reports: Sequence[RunReport]) -> Iterator[RenderableType]:
    """The parts of the page that a terminal can show, run by run."""
    for report in reports:
        count, last = len(report.history.trained), report.history.steps[-1].number
        yield Text(f"{report.files.name}: {count:,} training steps, the last one is step {last}", "bold")
        for alarm in report.alarms:
            when = f"step {alarm.step}"
            if alarm.steps > 1:
                when = f"{alarm.steps} times, steps {alarm.step} to {alarm.last}"
            yield Text(f"{alarm.name} ({when}): {alarm.text}.", "red")
            yield Text(f"  {alarm.advice}")
        if not report.alarms:
            yield Text("No alarm.")
        yield from (Text(f"{note}.") for note in report.notes)
        yield _ends(report)
        for grades in report.grades:
            yield from _grades(grades)
        yield _phases(report)
        yield from (_section(section) for section in report.sections)
    missing = charts_of([report.run for report in reports])[1]
    if missing:
        told = (f"{name} ({setting} records it)" if setting else name for name, setting in missing.items())
        yield Text(f"Not recorded: {', '.join(told)}.")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _ends(report: RunReport) -> Table:
    table = _table("First and last steps", "means", f"first {report.end}", f"last {report.end}")
    for name, first, last in report.ends:
        table.add_row(name, figure(first), figure(last))
    return table


def _grades(grades: Grades) -> Iterator[Table]:
    before = [grades.before.lower()] if grades.before else []
    for kind, lines in (("task", grades.by_task), ("scene", grades.by_scene)):
        if lines:
            table = _table(
                grades.title,
                kind,
                "responses",
                "reward",
                *before,
                "accuracy",
                "partial credit",
                "well-formed",
            )
            for line in lines:
                was = [_share(line.before)] if before else []
                shares = (*was, _share(line.accuracy), _share(line.partial), percent(line.format))
                reward = figure(line.reward.mean)
                table.add_row(line.name.replace("_", " "), f"{line.accuracy.n:,}", reward, *shares)
            yield table


def _share(found: Share | None) -> str:
    return f"{percent(found.mean)} [{percent(found.low)}, {percent(found.high)}]" if found else "-"


def _phases(report: RunReport) -> Table:
    table = _table("Time by phase", "phase", "seconds, median", "of all time")
    for name, seconds, part in report.phases:
        table.add_row(name.replace("_", " "), figure(seconds), percent(part))
    return table


def _section(section: Section) -> Table:
    table = _table(
        f"{section.title}: {len(section.rows)} of {section.of:,}", "row", "right", "when", "reward"
    )
    table.add_column("response", overflow="fold")
    for row in section.rows:
        for said in row.said:
            name = row.id or row.task.replace("_", " ")
            table.add_row(name, row.answer, said.when, figure(said.reward), said.text[:400])
    return table
