"""`tpru score`: grades again the rollouts that a trainer wrote, to compare presets before a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rich.table import Table

from tpru_verl.grading import PRESETS, Grade
from tpru_verl.runs.logs import rollouts_of
from tpru_verl.runs.rollouts import Rollout, read_rollouts
from tpru_verl.terminal import percent

BINS = 8  # of the histogram; the default preset has the values 0, 1/8, 7/8 and 1
BAR = 20  # characters of the longest bar


@dataclass
class PresetTally:
    """The grades of one task's rollouts."""

    grades: list[Grade] = field(default_factory=list)
    recorded: list[float] = field(default_factory=list)
    groups: dict[str, list[Grade]] = field(default_factory=dict)

    def add(self, rollout: Rollout, found: Grade) -> None:
        self.grades.append(found)
        self.groups.setdefault(rollout.group, []).append(found)
        if rollout.recorded is not None:
            self.recorded.append(rollout.recorded)

    def without_signal(self, preset: str) -> float | None:
        """Share of groups whose scores are all equal: GRPO learns nothing from them. None without groups."""
        groups = [group for group in self.groups.values() if len(group) > 1]
        if not groups:
            return None
        return fmean(len({found.score(preset) for found in group}) == 1 for group in groups)


def score_rollouts(path: Path) -> dict[str, PresetTally]:
    """Grades a dump: a tally for each task that the prompts name, "not recognised" for the others, and `all`.

    The folder of a run stands for its dump.

    Raises ValueError for no rollouts, and as `rollouts_of`, `read_rollouts` and `Rollout.grade`.
    """
    tallies: dict[str, PresetTally] = {}
    for rollout in read_rollouts(rollouts_of(path)):
        found = rollout.grade()
        for name in (rollout.task.value if rollout.task else "not recognised", "all"):
            tallies.setdefault(name, PresetTally()).add(rollout, found)
    if not tallies:
        raise ValueError(f"{path}: found 0 rollouts, expected at least 1")
    return {**{name: tallies[name] for name in sorted(tallies) if name != "all"}, "all": tallies["all"]}


def summary(tallies: Mapping[str, PresetTally]) -> dict[str, dict[str, float | int | None]]:
    """Numbers for a file: counts, shares, means of each preset, and of the score that was recorded."""
    return {
        name: {
            "n": len(tally.grades),
            "accuracy": fmean(found.accuracy for found in tally.grades),
            "format": fmean(found.format for found in tally.grades),
            "partial": fmean(found.partial for found in tally.grades),
            "parsed": fmean(found.parsed is not None for found in tally.grades),
            "recorded": fmean(tally.recorded) if tally.recorded else None,
            **{f"score_{preset}": fmean(g.score(preset) for g in tally.grades) for preset in PRESETS},
            **{f"without_signal_{preset}": tally.without_signal(preset) for preset in PRESETS},
        }
        for name, tally in tallies.items()
    }


def tables(tallies: Mapping[str, PresetTally]) -> list[Table]:
    """Tables for a terminal: one row for each task, and a histogram of the scores of each preset."""
    tasks = Table(title="Rollouts, graded", title_justify="left")
    presets = [f"score: {preset}" for preset in PRESETS]
    for column in ("", "n", "right", "well-formed", "parsed", "recorded", *presets, "no signal"):
        tasks.add_column(column, justify="left" if not column else "right")
    for name, line in summary(tallies).items():
        shares = (percent(line[key]) for key in ("accuracy", "format", "parsed"))
        means = (_mean(line[key]) for key in ("recorded", *(f"score_{preset}" for preset in PRESETS)))
        silent = percent(line[f"without_signal_{PRESETS[0]}"])
        tasks.add_row(name.replace("_", " "), f"{line['n']:,}", *shares, *means, silent)
    tasks.caption = (
        f"no signal: groups of one prompt whose scores are equal ({PRESETS[0]}), so that GRPO learns nothing"
    )
    return [tasks, _histogram(tallies["all"])]


def _histogram(tally: PresetTally) -> Table:
    slots = {
        preset: Counter(min(int(found.score(preset) * BINS), BINS) for found in tally.grades)
        for preset in PRESETS
    }
    table = Table("score", *PRESETS, title="Scores", title_justify="left")
    for slot in range(BINS + 1):
        label = f"{slot / BINS:.3f}" + (f" to {(slot + 1) / BINS:.3f}" if slot < BINS else "")
        shares = (slots[preset][slot] / len(tally.grades) for preset in PRESETS)
        table.add_row(label, *(f"{share:6.1%} {'#' * round(BAR * share)}" for share in shares))
    return table


def _mean(value: float | int | None) -> str:
    return "" if value is None else f"{value:.3f}"
