"""The command `tpru train`: a new run in a folder of its own, or one that is continued."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from tpru_verl import trainers
from tpru_verl.files import locked
from tpru_verl.launch import folder, plan, run, sizes
from tpru_verl.launch.guard import ENDING
from tpru_verl.launch.resume import NothingLeftError, has_saved, mend_tracker, resumed
from tpru_verl.runs import alarms
from tpru_verl.terminal import OptionError, messages

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
        OptionError: one in an option.
        RuntimeError: no trainer, or another `tpru train` writes into the folder.
    """
    if unknown := set(stop_on) - set(alarms.NAMES):
        raise OptionError(f"--stop-on: found {min(unknown)!r}, expected one of {', '.join(alarms.NAMES)}")
    chosen = _choose(recipe, overrides, out, resume)
    if chosen.before:
        if chosen.recipe != chosen.before.recipe:  # said before anything that follows from it
            other = f"{chosen.before.recipe} -> {chosen.recipe}"
            _say([f"changed: recipe: {other} (without a recipe, the run's own goes on)"])
        chosen = _from_last(chosen, overrides)
    planned = plan.compose(chosen.recipe, chosen.overrides, chosen.place)
    sizes.check(planned.settings)  # not in `compose`: the doctor asks for it, and says more
    if warning := trainers.untested(planned.trainer):
        _say([f"tpru: {warning}"])
    _say([f"tpru: {doubt}" for doubt in planned.doubts])
    print(planned, flush=True)
    if dry_run:
        doctor = f"tpru doctor --recipe {shlex.join([chosen.recipe, *planned.shown(chosen.overrides)])}"
        _say([f"tpru: model, data, reward and machine were not checked; {doctor} does that"])
        return 0
    start = partial(
        run.run,
        place=chosen.place,
        stall_timeout=stall_timeout,
        grace=grace,
        verbose=verbose,
        stop_on=stop_on,
        commands=commands,
    )
    with ExitStack() as stack:
        if chosen.before:
            stack.enter_context(locked(chosen.place))
            changes = folder.changes(chosen.place, planned, chosen.before)
            _say([*(f"changed: {line}" for line in changes), mend_tracker(planned.settings)])
        try:
            _say([f"reward: {run.check(planned)}"])
        except NothingLeftError as error:
            _say([f"tpru: {error}"])
            return NOTHING_LEFT
        if chosen.before is None:  # a run that is refused makes no folder, and so no lock
            stack.enter_context(locked(chosen.place))
        return _start(start, planned, chosen, restarts)


@dataclass(frozen=True)
class _Chosen:
    """A run before it is composed. `before`: what it was started with, where it is continued."""

    recipe: str
    overrides: list[str]
    place: Path
    before: folder.Start | None


def _choose(recipe: str | None, overrides: Sequence[str], out: Path | None, resume: Path | None) -> _Chosen:
    if resume:
        if out:
            raise OptionError("found --out and --resume, expected one: a continued run stays in its folder")
        place = folder.whole(resume)
        before = folder.earlier(place)
        os.chdir(before.folder)  # its data may have relative paths
        return _Chosen(recipe or before.recipe, folder.merged(before.overrides, overrides), place, before)
    if not recipe:
        raise ValueError("found no recipe, expected the name of one (`tpru recipes`)")
    return _Chosen(recipe, list(overrides), folder.new(out, recipe), None)


def _from_last(chosen: _Chosen, given: Sequence[str]) -> _Chosen:
    """As it goes on from its own last checkpoint, where its last start has saved one.

    Else from the one that this start was told to begin with, or from none.
    """
    overrides = folder.from_last(chosen.overrides, given)
    if chosen.before is None or overrides == chosen.overrides:
        return chosen
    settings = plan.compose(chosen.recipe, overrides, chosen.place).settings
    started = datetime.fromisoformat(chosen.before.times[-1]).timestamp()
    return replace(chosen, overrides=overrides) if has_saved(settings, since=started) else chosen


def _start(start: Callable[[plan.Plan], int], planned: plan.Plan, chosen: _Chosen, restarts: int) -> int:
    """Train, and again after a failure; returns the last exit code."""
    for left in range(restarts, -1, -1):
        folder.begin(chosen.place, planned, chosen.recipe, chosen.overrides, chosen.before)
        anew = "found no checkpoint: the run begins with step 1" if chosen.before else None
        _say([f"folder: {chosen.place}", resumed(planned.settings) or anew])
        code = start(planned)
        if code in _WANTED or not left:
            return code
        chosen = _from_last(replace(chosen, before=folder.earlier(chosen.place)), [])
        planned = plan.compose(chosen.recipe, chosen.overrides, chosen.place)
        _say([f"tpru: started again (--restarts): {left - 1} left", mend_tracker(planned.settings)])
    raise AssertionError("the last start returns")


def _say(lines: Iterable[str | None]) -> None:
    for line in filter(None, lines):
        messages.print(line, soft_wrap=True, highlight=False)
