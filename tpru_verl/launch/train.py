"""The command `tpru train`: a new run in a folder of its own, or one that is continued."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tpru_verl import trainers
from tpru_verl.files import locked
from tpru_verl.launch import folder, plan, run
from tpru_verl.launch.guard import ENDING
from tpru_verl.launch.resume import NothingLeftError, mend_tracker
from tpru_verl.runs import alarms
from tpru_verl.terminal import messages

NOTHING_LEFT = 3  # exit code of a run whose steps are done
# Exit codes of a run that was to end: none of them is a failure.
_WANTED = (0, run.ALARM, *(128 + number for number in ENDING))


def train(
    recipe: str | None,
    overrides: Sequence[str],
    *,
    out: Path | None = None,
    resume: Path | None = None,
    dry_run: bool = False,
    stall_timeout: float = 0.0,
    grace: float = run.GRACE,
    verbose: bool = False,
    stop_on: Sequence[str] = (),
    restarts: int = 0,
    commands: Sequence[str] = (),
) -> int:
    """Print the command of a run, and train unless `dry_run`; returns the exit code.

    `resume`: the folder of a run that is continued with its recipe and overrides, and with these in place of
    the same keys. `out`: the folder of a new run. `restarts`: how often a run is continued that has failed.
    The others are as in `run.run`.

    Raises:
        ValueError: a mistake in recipe, overrides or folders; the message is one line.
        RuntimeError: no trainer, or another `tpru train` writes into the folder.
    """
    before = None
    if resume:
        if out:
            raise ValueError("found --out and --resume, expected one: a continued run stays in its folder")
        place = resume.expanduser().absolute()
        before = folder.earlier(place)
        os.chdir(before.folder)  # its data may have relative paths
        overrides = folder.merged(before.overrides, overrides)
        recipe = recipe or before.recipe
    elif recipe:
        place = folder.new(out, recipe)
    else:
        raise ValueError("found no recipe, expected the name of one (`tpru recipes`)")
    if unknown := set(stop_on) - set(alarms.NAMES):
        raise ValueError(f"--stop-on: found {min(unknown)!r}, expected one of {', '.join(alarms.NAMES)}")
    planned = plan.compose(recipe, overrides, place)
    if warning := trainers.untested(planned.trainer):
        _say([f"tpru: {warning}"])
    print(planned, flush=True)
    if dry_run:
        return 0
    with ExitStack() as stack:
        if before:
            stack.enter_context(locked(place))
            _say(f"changed: {line}" for line in folder.changes(place, planned, recipe, before))
            _say([mend_tracker(planned.settings)])
        try:
            _say([f"reward: {run.check(planned)}"])
        except NothingLeftError as error:
            _say([f"tpru: {error}"])
            return NOTHING_LEFT
        if before is None:
            stack.enter_context(locked(place))
        code = 0
        for left in range(restarts, -1, -1):
            folder.begin(place, planned, recipe, overrides, before)
            _say([f"folder: {place}"])
            code = run.run(
                planned,
                place,
                stall_timeout=stall_timeout,
                grace=grace,
                verbose=verbose,
                stop_on=stop_on,
                commands=commands,
            )
            if code in _WANTED or not left:
                break
            before = folder.earlier(place)
            _say([f"tpru: started again (--restarts): {left - 1} left", mend_tracker(planned.settings)])
        return code


def _say(lines: Iterable[str | None]) -> None:
    for line in filter(None, lines):
        messages.print(line, soft_wrap=True, highlight=False)
