"""The one reader of what a run logs: veRL's and EasyR1's metrics, in our folder of a run or in theirs."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpru_verl.launch import folder
from tpru_verl.runs.places import EASYR1_GENERATIONS, EASYR1_METRICS, Places, places_of, settings_of
from tpru_verl.terminal import line_of

# Files of a run's folder that hold metrics: ours (and the demo's), and EasyR1's `trainer.logger=[file]`.
METRICS_FILES = (folder.METRICS, EASYR1_METRICS)
CONFIG_FILES = (folder.RECIPE, "experiment_config.json")

# What we call a metric -> what veRL 0.9.1 and EasyR1 call it, the first that a step has. `rollouts/...` are
# our own, computed from the rollouts of the step (`runs.rollouts`).
NAMES: dict[str, tuple[str, ...]] = {
    "reward": ("critic/score/mean", "reward/overall", "rollouts/reward"),
    "highest reward": ("critic/score/max", "rollouts/highest_reward"),
    "lowest reward": ("critic/score/min", "rollouts/lowest_reward"),
    "accuracy": ("rollouts/accuracy", "reward/accuracy"),
    "partial credit": ("rollouts/partial", "reward/partial"),
    "format rate": ("rollouts/format", "reward/format"),
    "groups without variance": ("rollouts/groups_without_variance",),
    "commonest answer": ("rollouts/commonest_answer",),
    "commonest right answer": ("rollouts/commonest_right_answer",),
    "response length": ("response_length/mean",),
    "longest response": ("response_length/max",),
    "share of longest": ("response_length/clip_ratio",),
    "KL loss": ("actor/kl_loss", "actor/reward_kl_penalty", "actor/kl_penalty"),
    "policy KL": ("actor/ppo_kl",),
    "entropy": ("actor/entropy", "actor/entropy_loss"),
    "gradient norm": ("actor/grad_norm",),
    "agreement": ("training/rollout_actor_probs_pearson_corr",),
    "seconds": ("timing_s/step", "perf/time_per_step"),
    "tokens a second": ("perf/throughput",),
    "host memory": ("perf/cpu_memory_used_gb", "actor/perf/cpu_memory_used_gb"),
    "accelerator memory": ("perf/max_memory_allocated_gb", "actor/perf/max_memory_allocated_gb"),
}
# Phases that few steps have: their time says nothing about the others.
RARE_PHASES = ("testing", "validation", "save_checkpoint")
_LARGEST = 1e100  # of a metric: what is larger has gone wrong, and overflows in means and charts
_NAMED = 5  # unreadable lines that a note names
_ACCURACY = re.compile(r"val-core/(.+)/acc/mean@\d+|val/(accuracy)_reward")
_HEAD = 256  # bytes that tell whether a file is still the one that was read before


@dataclass
class Step:
    """A step's number and its metrics, by their own names; a value that was no finite number is NaN."""

    number: int
    data: dict[str, float] = field(default_factory=dict)

    def get(self, name: str) -> float | None:
        """The metric called so in NAMES; None where the step has none, NaN where it is no number."""
        return next((self.data[key] for key in NAMES[name] if key in self.data), None)

    @property
    def trained(self) -> bool:
        """Whether this is a training step: before the first one stands a validation alone."""
        return any(key.startswith(("actor/", "critic/", "timing_s/step", "rollouts/")) for key in self.data)

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase."""
        names = {key: key.removeprefix("timing_s/") for key in self.data if key.startswith("timing_s/")}
        return {name: self.data[key] for key, name in names.items() if name != "step"}

    @property
    def whole_seconds(self) -> float | None:
        """Seconds with all phases: veRL 0.9.1 times validation beside the step, EasyR1 within it."""
        seconds = self.get("seconds")
        return None if seconds is None or math.isnan(seconds) else max(seconds, sum(self.phases.values()))

    @property
    def usual_seconds(self) -> float | None:
        """Seconds without the phases that few steps have."""
        whole = self.whole_seconds
        rare = sum(self.phases.get(phase, 0.0) for phase in RARE_PHASES)
        return None if whole is None else whole - rare


@dataclass
class History:
    """The steps of a run, in order, and what has to be said about its files.

    `response_limit`: tokens of the longest response that the recipe allows. veRL 0.9.1 compares with the
    longest response of the batch instead, so that its clip ratio alone says nothing.
    """

    steps: list[Step] = field(default_factory=list)
    response_limit: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def trained(self) -> list[Step]:
        return [step for step in self.steps if step.trained]


def accuracies(step: Step) -> dict[str, float]:
    """Task -> accuracy of a validation, which may be NaN; {} for a step without one.

    veRL: `val-core/DATA_SOURCE/acc/mean@N`, where the task ends our data sources; of sources that end alike
    the whole name is kept. EasyR1: `val/accuracy_reward`, over all tasks.
    """
    found = ((_ACCURACY.fullmatch(name), step.data[name]) for name in sorted(step.data))
    by_source = {match[1] or match[2]: value for match, value in found if match}
    ends = Counter(source.rpartition("/")[2] for source in by_source)
    return {
        end if ends[end := source.rpartition("/")[2]] == 1 else source: value
        for source, value in by_source.items()
    }


def validated(step: Step) -> float | None:
    """Mean accuracy over the tasks of a validation; None for a step without one."""
    found = accuracies(step).values()
    return sum(found) / len(found) if found else None


def clipped(step: Step, limit: int | None) -> float | None:
    """Share of responses that ended at the limit; None where the limit or the lengths are not known."""
    longest, share = step.get("longest response"), step.get("share of longest")
    if limit is None or longest is None or share is None:
        return None
    return share if longest >= limit else 0.0


class MetricsReader:
    """Reads a metrics file as it grows; one that was made anew is read from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start_over()

    def _start_over(self) -> None:
        self._offset, self._line, self._head, self._inode = 0, 0, b"", 0
        self.steps: dict[int, Step] = {}
        self._broken: list[int] = []
        self._repeated: set[int] = set()
        self._rest = b""

    def update(self) -> list[Step]:
        """All steps so far. Raises OSError where the file is not there."""
        with self.path.open("rb") as file:
            head, found = file.read(_HEAD), os.fstat(file.fileno())
            # A resumed run puts a file in the place of the one before, which begins alike and may be longer.
            new = (found.st_ino, head[: len(self._head)]) != (self._inode, self._head)
            if new or found.st_size < self._offset:
                self._start_over()
            self._head, self._inode = head, found.st_ino
            file.seek(self._offset)
            content = self._rest + file.read()
            self._offset = file.tell()
        *lines, self._rest = content.split(b"\n")
        for line in lines:
            self._add(line)
        return list(self.steps.values())  # in order: `_add` takes out what a line goes back behind

    @property
    def notes(self) -> list[str]:
        """What was found besides whole lines in order."""
        found: list[str] = []
        if self._broken:
            lines = ", ".join(map(str, self._broken[:_NAMED]))
            more = f" and {len(self._broken) - _NAMED} more" if len(self._broken) > _NAMED else ""
            plural = "s" * (len(self._broken) > 1)
            found.append(f"{self.path.name}, line{plural} {lines}{more}: unreadable, left out")
        if self._rest.strip():
            found.append(f"{self.path.name}: the last line is cut off, as by a run that was killed; left out")
        if self._repeated:
            first, last = min(self._repeated), max(self._repeated)
            which = f"step {first} was" if first == last else f"steps {first} to {last} were"
            found.append(f"{self.path.name}: {which} trained again by a resumed run; the later lines count")
        return found

    def _add(self, line: bytes) -> None:
        self._line += 1
        if not line.strip():
            return
        read = _step_of(line)
        if read is None:
            self._broken.append(self._line)
            return
        number, data = read
        # A resumed run goes back to its checkpoint: what came after that was not trained from it.
        while self.steps and (last := next(reversed(self.steps))) > number:
            self._repeated.add(last)
            del self.steps[last]
        read = Step(number, data)
        # A resumed run validates the step of its checkpoint once more, which is no training.
        if number in self.steps and self.steps[number].trained and read.trained:
            self._repeated.add(number)
            del self.steps[number]
        self.steps.setdefault(number, Step(number)).data.update(data)


def _step_of(line: bytes) -> tuple[int, dict[str, float]] | None:
    """Number and metrics of a line: veRL's {"step", "data"}, EasyR1's {"step", ...} with nested names."""
    try:
        record = json.loads(line)
        step = record.get("step") if isinstance(record, dict) else None
        if type(step) is not int or not 0 <= step < 2**53:
            return None
        data = record["data"] if isinstance(record.get("data"), dict) else record
        return step, dict(_flat({k: v for k, v in data.items() if k != "step"}))
    except (ValueError, RecursionError):
        return None


def _flat(data: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif value is None or (isinstance(value, float) and not math.isfinite(value)):
            yield f"{prefix}{key}", math.nan  # veRL's logger writes NaN as null
        elif isinstance(value, (int, float)):
            yield f"{prefix}{key}", float(value) if abs(value) < _LARGEST else math.nan


@dataclass(frozen=True)
class RunFiles:
    """Where a run keeps what it wrote. `rollouts` and `validation`: folders, or EasyR1's one file.

    `checkpoints`: the folder that the recipe of `tpru train` names; None for other runs.
    """

    name: str
    metrics: Path | None
    rollouts: Path | None
    validation: Path | None
    config: Path | None = None
    checkpoints: Path | None = None

    @classmethod
    def find(cls, path: Path, rollouts: Path | None = None, validation: Path | None = None) -> RunFiles:
        """The files of a run's folder, or of a metrics file or a folder of dumps that stands for a run.

        Raises:
            FileNotFoundError: a path that is not there, or holds nothing of a run.
            ValueError: an unreadable recipe.
        """
        for given in (path, rollouts, validation):
            if given is not None and not given.exists():
                raise FileNotFoundError(f"{given}: found nothing there, expected files of a run")
        if path.is_file() and path.stem.isdigit():  # one step of a folder of rollouts
            path = path.parent
        run = path if path.is_dir() else path.parent
        config = next((run / name for name in CONFIG_FILES if (run / name).is_file()), None)
        found = cls(run.name, None, None, None, config)
        told = found._places(run)
        names = METRICS_FILES if path.is_dir() else (path.name,)
        places = [run, run / folder.CHECKPOINTS, *([told.checkpoints] if told else [])]  # the last of EasyR1
        metrics = next((at / name for at in places for name in names if (at / name).is_file()), None)
        generations = next(
            (at / EASYR1_GENERATIONS for at in places if (at / EASYR1_GENERATIONS).is_file()), None
        )
        if validation is None:
            validation = told.validation if told else _folder(run / folder.VALIDATION) or generations
        if rollouts is None:
            rollouts = told.rollouts if told else _folder(run / folder.ROLLOUTS)
        if metrics is None and rollouts is None and any(file.stem.isdigit() for file in path.glob("*.jsonl")):
            rollouts = path  # veRL's `trainer.rollout_data_dir`
        if metrics is None and rollouts is None and validation is None:
            raise FileNotFoundError(
                f"{path}: found no {' or '.join(METRICS_FILES)} and no rollouts, expected a run's folder, "
                "a metrics file (veRL: tpru/RECIPE.jsonl) or a folder of rollouts"
            )
        name = path.stem if path.is_file() and metrics and path.name not in METRICS_FILES else run.name
        return cls(
            name or str(path), metrics, rollouts, validation, config, told.checkpoints if told else None
        )

    def _places(self, run: Path) -> Places | None:
        """By the recipe of `tpru train`, None where there is none."""
        if self.config is None or self.config.name != folder.RECIPE or not (told := self.settings()):
            return None
        return places_of(run, settings_of(told), self.started_in)

    def settings(self) -> Mapping[str, Any]:
        """The run's composed recipe; empty where there is none. Raises ValueError for an unreadable one."""
        if self.config is None:
            return {}
        import yaml  # every environment with a trainer has it; JSON is YAML, too

        try:
            found = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise ValueError(f"{self.config}: {line_of(error)}, expected the recipe of the run") from error
        return found if isinstance(found, dict) else {}

    def without_steps(self) -> str:
        """What to say where no step is found: why, and the log that knows more."""
        path = self.config or self.metrics or self.rollouts or self.validation
        run = path.parent if path else Path(self.name)
        log, summary = run / folder.LOG, run / folder.SUMMARY
        if not log.is_file():
            return f"{self.metrics or self.rollouts}: found no step, expected at least one"
        # A run that is continued has the summary of its last start.
        ended = summary.is_file() and summary.stat().st_mtime >= log.stat().st_mtime
        why = "it ended before its first one" if ended else "none has ended yet"
        return f"{run}: found no step, expected at least one: {why}; see its log, {log}"

    @property
    def started_in(self) -> Path | None:
        """The folder that relative paths of the recipe begin in, which `tpru train` notes; else None."""
        try:
            found = json.loads((self.config.parent / folder.START).read_text()) if self.config else {}
        except (OSError, ValueError, RecursionError):
            return None
        at = found.get("folder") if isinstance(found, dict) else None
        return Path(at) if isinstance(at, str) and "\0" not in at else None


def rollouts_of(path: Path) -> Path:
    """What `read_rollouts` takes: `path` itself, or the rollouts of the run whose folder it is.

    EasyR1 keeps its validations alone. Raises FileNotFoundError for a run that has neither, and ValueError
    for one with an unreadable recipe.
    """
    if not any((path / name).is_file() for name in (*METRICS_FILES, *CONFIG_FILES)):
        return path
    found = RunFiles.find(path)
    if answers := found.rollouts or found.validation:
        return answers
    raise FileNotFoundError(f"{path}: found a run without rollouts, expected their folder in it")


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None


def response_limit(settings: Mapping[str, Any]) -> int | None:
    """`data.max_response_length`, the same key in veRL and EasyR1."""
    data = settings.get("data")
    found = data.get("max_response_length") if isinstance(data, Mapping) else None
    return found if isinstance(found, int) else None
