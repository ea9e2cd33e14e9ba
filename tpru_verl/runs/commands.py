"""`tpru report`: pages or text from the files of runs, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tpru_verl.files import check_output
from tpru_verl.runs.logs import RunFiles
from tpru_verl.runs.report import RunReport, write_report
from tpru_verl.runs.rollouts import files_of
from tpru_verl.runs.text import texts
from tpru_verl.terminal import messages, results

LOOK = 10.0  # seconds between two looks of --watch


def report(
    runs: Sequence[Path],
    out: Path | None,
    *,
    text: bool,
    watch: bool,
    rollouts: Path | None,
    validation: Path | None,
) -> None:
    """Raises FileNotFoundError or ValueError for what is no run, or has no step yet."""
    if len(runs) > 1 and (rollouts or validation):
        raise ValueError(f"found {len(runs)} runs, expected one with --rollouts or --validation")
    if text and out is not None:
        raise ValueError("found --text and --out, expected one of them: --text writes no page")
    found = [RunFiles.find(run, rollouts, validation) for run in runs]
    names = [files.name for files in found]
    if len(set(names)) < len(names):  # of folders in different places
        names = [str(run) for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"found {twice} {names.count(twice)} times, expected different runs")
    reports = [RunReport(replace(files, name=name)) for files, name in zip(found, names, strict=True)]
    for files in found:
        dumps = [file for at in (files.rollouts, files.validation) if at for file in files_of(at)]
        check_output("--out", out, [*dumps, *filter(None, (files.metrics, files.config))])
    page = out or (runs[0] if runs[0].is_dir() else runs[0].parent) / "report.html"
    _show(reports, page, text, watch)
    while watch:
        time.sleep(LOOK)
        renewed = [report.renew() for report in reports]  # each of them
        if any(renewed):
            _show(reports, page, text, watch)


def _show(reports: Sequence[RunReport], page: Path, text: bool, watch: bool) -> None:
    if text:
        console = results()
        for part in texts(reports):
            console.print(part, soft_wrap=not hasattr(part, "columns"))
        return
    write_report(reports, page, renewed=LOOK if watch else 0)
    for report in reports:
        for note in report.notes:
            messages.print(f"{report.files.name}: {note}", highlight=False, soft_wrap=True)
    for report in reports:
        run = f"{report.files.name}: " if len(reports) > 1 else ""
        alarms = ", ".join(alarm.name for alarm in report.alarms) or "none"
        messages.print(f"{run}alarms: {alarms}", highlight=False, soft_wrap=True)
    results().print(str(page), highlight=False, soft_wrap=True)
