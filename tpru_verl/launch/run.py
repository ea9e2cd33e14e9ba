"""The run of a plan: checked, started, watched, and its end told."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tpru_verl.launch import folder
from tpru_verl.launch.checks import row_count
from tpru_verl.launch.first_error import first_error
from tpru_verl.launch.monitor import Monitor
from tpru_verl.launch.plan import Plan
from tpru_verl.launch.resume import last_step, note_run, saved_step, total_steps
from tpru_verl.launch.reward_trial import try_reward
from tpru_verl.launch.watch import End, Ending, Stop, watch
from tpru_verl.runs.export import saved
from tpru_verl.terminal import visible

ALARM = 4  # exit code of a run that an alarm of `--stop-on` ended
STALLED = 5  # exit code of a run that was ended because it made no progress
GRACE = 120.0  # seconds that a trainer has to save before it ends


def check(plan: Plan) -> str:
    """Look at the machine and the data, and try the reward on real rows. Raises as they do.

    Returns one sentence about the reward.
    """
    plan.check()
    return str(try_reward(plan.settings))


def run(
    plan: Plan,
    place: Path,
    *,
    stall_timeout: float = 0.0,
    grace: float = GRACE,
    verbose: bool = False,
    stop_on: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> int:
    """Train to the end and return the exit code: the trainer's, 128 + n after signal n, ALARM, STALLED.

    `place`: the run's folder, which keeps the output in `train.log`; `verbose` prints it, too. A run without
    progress (`launch.progress`) for `stall_timeout` seconds is ended, after the stacks of its processes were
    written; 0 waits for ever. After SIGTERM, or an alarm of `stop_on`, veRL has `grace` seconds to save a
    checkpoint. Where a run fails, the first error of the log is printed on standard error. `commands`: those
    of `tpru` that are named at the end.
    """
    note_run(plan.settings, place)
    log, stop_file = place / folder.LOG, place / folder.STOP
    stop_file.unlink(missing_ok=True)
    environment = {**plan.environment, "TPRU_STOP_FILE": str(stop_file)}
    total = total_steps(plan.settings, row_count(plan.settings))
    logger = plan.settings.text("logger")
    verbose = verbose or "file" not in logger  # there is nothing to make a line of
    resumed_at = last_step(plan.settings) or 0
    with Monitor(
        place, plan.settings, total=total, resumed_at=resumed_at, line=not verbose, stop_on=stop_on
    ) as monitor:
        end = watch(
            plan.command,
            environment,
            log,
            echo=verbose,
            stall_timeout=stall_timeout,
            stacks=place / folder.STACKS,
            each_second=monitor,
            stop=Stop(stop_file, grace),
            on_end=lambda how: monitor.ending(_ending(plan, how, grace)),
            secrets=plan.secrets,
        )
    stop_file.unlink(missing_ok=True)
    code = _exit_code(end, stopped=monitor.stopped)
    for line in _last_words(plan, end, code, log):
        print(f"tpru: {visible(line)}", file=sys.stderr)
    monitor.end(code, _next(place, code, commands))
    return code


def _ending(plan: Plan, how: Ending, grace: float) -> str:
    """What is said at once where a run is made to end."""
    if how == "kill":
        return "ending at once"
    step = saved_step(plan.settings)
    saved = f"the last checkpoint is that of step {step}" if step else "there is no checkpoint yet"
    if how == "save":
        return f"saving, then ending, within {grace:g} s; {saved} (Ctrl-C ends the run without saving)"
    return f"ending without saving; {saved} (the next Ctrl-C ends the run at once)"


def _exit_code(end: End, *, stopped: bool) -> int:
    if end.asked:  # whatever a trainer makes of it
        return 128 + end.asked if end.code else 0
    if stopped:
        return ALARM
    return STALLED if end.reason else end.code


def _last_words(plan: Plan, end: End, code: int, log: Path) -> list[str]:
    """Why the run has ended, where it was not done."""
    if not code:
        return []
    step = saved_step(plan.settings)
    saved = f"the checkpoint of step {step} is there" if step else "there is no checkpoint"
    if end.asked:
        return [f"ended by {signal.Signals(end.asked).name}; {saved}"]
    if end.reason:
        # An error before a hang seldom says why the run hangs: it is shown, but second.
        found = [f"before: {first_error(log)}"] if code != ALARM else []
        return [end.reason, *found, saved, f"the whole log: {log}"]
    if code > 128:  # it had no time for an error of its own
        name = signal.Signals(code - 128).name
        return [
            f"{plan.trainer.name} was ended by {name}: killed, or out of memory",
            saved,
            f"the whole log: {log}",
        ]
    return [first_error(log), saved, f"the whole log: {log}"]


def _next(place: Path, code: int, commands: Sequence[str]) -> list[str]:
    """Where a run lies that has ended, and what to do with it, as lines of a shell."""
    name, found = shlex.quote(str(place)), saved(place)
    inside = all(checkpoint.actor.is_relative_to(place) for checkpoint in found)
    beside = "" if inside else f", its checkpoints in {found[-1].actor.parents[1]}"
    lines = [f"all of the run is in {place}{beside}"] + ([f"tpru train --resume {name}"] if code else [])
    lines += [f"tpru report {name}"] if "report" in commands else []
    exports = found and not code and "export" in commands
    return lines + ([f"tpru export {name} {name}/model"] if exports else [])
