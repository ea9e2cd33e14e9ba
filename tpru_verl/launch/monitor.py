"""What a person sees of a run while it goes, and at its end: from the metrics and answers that it writes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from statistics import fmean

from rich.live import Live
from rich.table import Table
from rich.text import Text

from tpru_verl.files import write_json
from tpru_verl.launch import folder
from tpru_verl.launch.settings import Settings
from tpru_verl.runs.alarms import Alarm, Watch
from tpru_verl.runs.logs import History, MetricsReader, Step, accuracies, response_limit
from tpru_verl.runs.places import places_of
from tpru_verl.runs.rollouts import graded, metrics_of, read_rollouts
from tpru_verl.terminal import messages, percent, results

RECENT = 10  # steps that reward, accuracy and seconds are means of
EVERY = 10  # steps between two lines where no terminal is


class Monitor:
    """Reads a run's folder each second: a progress line, alarms as they come, and the summary.

    `total`: steps of the whole run, 0 where they are not known. `resumed_at`: the step of the checkpoint that
    this start goes on from. `stop_on`: names of alarms that end the run.
    """

    def __init__(
        self,
        place: Path,
        settings: Settings,
        *,
        total: int,
        resumed_at: int = 0,
        line: bool = True,
        stop_on: Sequence[str] = (),
    ) -> None:
        self.place, self.total, self.stop_on = place, total, stop_on
        self.history = History(response_limit=response_limit(settings.config))
        self._places = places_of(place, settings)
        self._reader = MetricsReader(self._places.metrics)
        self._seen = (0, 0)  # number and size of the file
        self._trained: list[Step] = []
        self._started = time.monotonic()
        self._resumed_at = resumed_at
        self._read()
        # Later steps belong to the start before; the trainer takes them out when it logs its first one.
        self.history.steps = [step for step in self.history.steps if step.number <= resumed_at]
        self._trained = self.history.trained
        self._watch = Watch(self.history.response_limit)
        for step in self._trained:
            self._watch.add(step)
        self.stopped = False  # by an alarm
        self._said: set[str] = set()
        self._reported = self._resumed_at
        self._by_task: dict[str, deque[float]] = {}
        self._ending_since = 0.0
        self._untold = ""  # what is to be said at the next look
        self._live = Live(console=messages, auto_refresh=False, transient=True) if line else None
        self._shown = line and messages.is_terminal

    def __enter__(self) -> Monitor:
        if self._live and self._shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._untold = ""  # it has ended
        self()  # what the trainer wrote just before its end
        if self._live and self._shown:
            self._live.stop()

    def ending(self, text: str) -> None:
        """The run was made to end: the next look says `text`, and the line shows no progress from now on."""
        self._ending_since, self._untold = self._ending_since or time.monotonic(), text

    def __call__(self) -> str | None:
        """Look once. Returns why the run is to end, where an alarm of `stop_on` holds."""
        if self._untold:
            messages.print(self._untold, soft_wrap=True, highlight=False)
            self._untold = ""
        new = self._read()
        for step in new:
            self._grade(step)
            self._watch.add(step)
        if new:
            for alarm in self._new_alarms():
                messages.print(f"alarm {alarm.name}, step {alarm.last}: {alarm.text}. {alarm.advice}")
                if alarm.name in self.stop_on:
                    self.stopped = True
                    return f"alarm {alarm.name} (--stop-on) at step {alarm.last}: {alarm.text}"
        if self._live and self._shown:
            self._live.update(Text(self.line(), overflow="ellipsis", no_wrap=True), refresh=True)
        elif (
            self._live
            and new
            and not self._ending_since
            and (self._last >= self._reported + EVERY or self._last == self.total)
        ):
            self._reported = self._last
            messages.print(self.line(), soft_wrap=True)
        return None

    @property
    def _last(self) -> int:
        return self._trained[-1].number if self._trained else 0

    def _read(self) -> list[Step]:
        """The training steps that are new, in order. Steps before them are not looked at again."""
        with suppress(OSError):  # no step was logged yet
            found = self._reader.path.stat()
            if (found.st_ino, found.st_size) != self._seen:
                self._seen = (found.st_ino, found.st_size)
                self.history.steps = self._reader.update()
                later = takewhile(lambda step: step.number > self._last, reversed(self.history.steps))
                new = [step for step in later if step.trained][::-1]
                self._trained += new
                return new
        return []

    def _grade(self, step: Step) -> None:
        """Grade the answers of a new step, where the run keeps some."""
        if self._places.rollouts is None:  # EasyR1 keeps none
            return
        try:
            found = list(graded(read_rollouts(self._places.rollouts / f"{step.number}.jsonl")))
        except (OSError, ValueError):  # none are kept, or the trainer is in the middle of them
            return
        step.data.update(metrics_of(found))
        for task in sorted({answer.task for answer in found}):
            mean = fmean(answer.accuracy for answer in found if answer.task == task)
            self._by_task.setdefault(task, deque(maxlen=RECENT)).append(mean)

    def _new_alarms(self) -> list[Alarm]:
        """Those that this start has not told yet, and that hold now."""
        found = [alarm for alarm in self._watch.alarms if alarm.last > self._resumed_at]
        new = [alarm for alarm in found if alarm.name not in self._said]
        self._said.update(alarm.name for alarm in new)
        return new

    def line(self) -> str:
        """Step of steps, reward, seconds a step, time left, accuracy of each task."""
        if self._ending_since:
            return f"ending: {_duration(time.monotonic() - self._ending_since)}"
        recent = [step for step in self._trained[-RECENT:] if step.number > self._resumed_at]
        if not recent:
            return f"starting Ray, model and rollout engine: {_duration(time.monotonic() - self._started)}"
        parts = [f"step {self._last}" + (f" of {self.total}" if self.total else "")]
        rewards = [value for step in recent if (value := step.get("reward")) is not None]
        if rewards:
            parts.append(f"reward {fmean(rewards):.3f}")
        if seconds := fmean(map(_seconds, recent)):
            parts.append(f"{seconds:.1f} s a step")
            if self.total > self._last:
                parts.append(f"{_duration(seconds * (self.total - self._last))} left")
        for task, means in self._by_task.items():  # last: a narrow terminal cuts the line
            parts.append(f"{task.replace('_', ' ')} {percent(fmean(means))}")
        return " · ".join(parts)

    def summary(self, code: int) -> dict[str, object]:
        """What `summary.json` holds."""
        trained = self._trained
        some = max(1, min(RECENT, len(trained) // 2))
        phases: dict[str, float] = {}
        for step in trained:
            for name, seconds in step.phases.items():
                phases[name] = phases.get(name, 0.0) + seconds
        validations = [(step.number, found) for step in self.history.steps if (found := accuracies(step))]
        return {
            "exit_code": code,
            "step": self._last,
            "steps": self.total or None,
            "reward": {"first": _reward(trained[:some]), "last": _reward(trained[-some:]), "steps": some},
            "validation": [{"step": number, "accuracy": found} for number, found in validations],
            "seconds": {"step": sum(step.get("seconds") or 0.0 for step in trained), **phases},
            "alarms": [vars(alarm) for alarm in self._watch.alarms],
        }

    def end(self, code: int, commands: Sequence[str]) -> None:
        """Write `summary.json`; where a step was done, print a table and what to do next."""
        summary = self.summary(code)
        write_json(self.place / folder.SUMMARY, summary)
        if not self._trained:
            return
        console = results()
        console.print(self._table(summary))
        for command in commands:
            console.print(command, soft_wrap=True, highlight=False)

    def _table(self, summary: dict) -> Table:
        table = Table(title=f"Step {self._last}" + (f" of {self.total}" if self.total else ""))
        for name in ("", "before", "after"):
            table.add_column(name, justify="right" if name else "left")
        reward = summary["reward"]
        name = f"reward, mean of the first and the last {reward['steps']} steps"
        table.add_row(name, _number(reward["first"]), _number(reward["last"]))
        if len(validated := summary["validation"]) > 1:
            before, after = validated[0], validated[-1]
            for task, accuracy in after["accuracy"].items():
                was = before["accuracy"].get(task)
                name = f"{task.replace('_', ' ')}, validated at steps {before['step']} and {after['step']}"
                table.add_row(name, percent(was), percent(accuracy))
        whole = summary["seconds"]["step"] or 1.0
        inside = {name: s for name, s in summary["seconds"].items() if name not in ("step", "testing")}
        for name, seconds in sorted(inside.items(), key=lambda item: -item[1])[:6]:
            table.add_row(
                f"time: {name.replace('_', ' ')}", "", f"{seconds:.1f} s, {percent(seconds / whole)}"
            )
        table.add_row("time: all steps", "", f"{whole:.1f} s")
        if testing := summary["seconds"].get("testing"):
            table.add_row("time: validation", "", f"{testing:.1f} s")
        for alarm in summary["alarms"]:
            table.add_row(f"alarm {alarm['name']}", "", f"step {alarm['last']}: {alarm['text']}")
        return table


def _seconds(step: Step) -> float:
    """Of a step with its validation, which veRL does not count to it."""
    return (step.get("seconds") or 0.0) + step.phases.get("testing", 0.0)


def _reward(steps: Sequence[Step]) -> float | None:
    values = [value for step in steps if (value := step.get("reward")) is not None]
    return fmean(values) if values else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    )
