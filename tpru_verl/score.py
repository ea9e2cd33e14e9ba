"""`tpru score`: grades again the rollouts that a trainer wrote, to compare presets before a run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rich.table import Table

from tpru_verl.grading import PRESETS, Grade, grade, read_answer
from tpru_verl.sample import parse_options, recognise_task
from tpru_verl.terminal import percent

# The keys of a dump: those of veRL's `rollout_data_dir` and `validation_data_dir`, then those of others.
PROMPTS, RESPONSES = ("input", "prompt", "problem"), ("output", "response", "completion", "prediction")
ANSWERS = ("gts", "ground_truth", "answer", "solution", "label")
BINS = 8  # of the histogram; the default preset has the values 0, 1/8, 7/8 and 1
BAR = 20  # characters of the longest bar
_EASYR1 = re.compile(r"^\[(prompt|output|ground_truth|score)\] ", re.MULTILINE)


@dataclass(frozen=True)
class Rollout:
    """One response of a dump.

    `recorded` is the score it was trained with, `group` the prompt it answers, `place` the file, the row and
    the key of its right answer.
    """

    prompt: str
    response: str
    answer: str
    recorded: float | None
    group: str
    place: str


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


def read_rollouts(path: Path) -> Iterator[Rollout]:
    """Rollouts of veRL's jsonl (a file, or the folder of one file a step) or EasyR1's `generations.log`.

    Raises FileNotFoundError where there is nothing, ValueError with file, line and keys for another form.
    """
    files = sorted(path.glob("*.jsonl"), key=_step) if path.is_dir() else [path]
    if not files or not path.exists():
        raise FileNotFoundError(f"{path}: found no rollouts, expected .jsonl, a folder of them, or .log")
    for file in files:
        yield from _read_log(file) if file.suffix == ".log" else _read_jsonl(file)


def _step(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdigit() else 0, path.name)


def _read_jsonl(path: Path) -> Iterator[Rollout]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{place}: not readable as json: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{place}: found {type(record).__name__}, expected an object")
            yield _rollout(record, place)


def _rollout(record: Mapping[str, object], place: str) -> Rollout:
    prompt_key, response_key, answer_key = (
        next((key for key in keys if isinstance(record.get(key), str)), None)
        for keys in (PROMPTS, RESPONSES, ANSWERS)
    )
    if response_key is None or answer_key is None:
        missing = RESPONSES if response_key is None else ANSWERS
        raise ValueError(
            f"{place}: found keys {', '.join(record)}; expected text in one of {', '.join(missing)}"
        )
    score = record.get("score")
    uid = str(record.get("uid") or "")
    # veRL's uid ends in the numbers of the sample and of its output.
    prompt = str(record[prompt_key]) if prompt_key else ""
    group = re.sub(r"_\d+_\d+$", "", uid) if uid else prompt or place
    return Rollout(
        prompt,
        str(record[response_key]),
        str(record[answer_key]),
        float(score) if isinstance(score, (int, float)) else None,
        f"{record.get('step', '')}/{group}",
        f"{place}, {answer_key}",
    )


def _read_log(path: Path) -> Iterator[Rollout]:
    """EasyR1's text: [prompt], [output], [ground_truth], [score] and an empty line, again and again."""
    pieces = _EASYR1.split(path.read_text(encoding="utf-8"))[1:]
    records = list(zip(pieces[::2], pieces[1::2], strict=True))
    if [name for name, _ in records] != ["prompt", "output", "ground_truth", "score"] * (len(records) // 4):
        raise ValueError(f"{path}: expected entries of [prompt], [output], [ground_truth], [score]")
    for start in range(0, len(records), 4):
        prompt, response, answer, score = (text.strip("\n") for _, text in records[start : start + 4])
        place = f"{path} entry {start // 4 + 1}:"
        try:
            recorded = float(score)
        except ValueError:
            raise ValueError(f"{place} found [score] {score!r}, expected a number") from None
        yield Rollout(prompt, response, answer, recorded, prompt, f"{place} [ground_truth]")


def score_rollouts(path: Path) -> dict[str, PresetTally]:
    """Grades a dump: a tally for each task that the prompts name, "not recognised" for the others, and `all`.

    A prompt that ends with `<think>` tells that the chat template has opened the reasoning. Raises ValueError
    with file, row and key for a right answer that no response can match, and as `read_rollouts`.
    """
    tallies: dict[str, PresetTally] = {}
    for rollout in read_rollouts(path):
        task, options = recognise_task(rollout.prompt), parse_options(rollout.prompt) or None
        try:
            read_answer(rollout.answer, options, task)
        except ValueError as error:
            raise ValueError(f"{rollout.place}: {error}") from None
        opened = rollout.prompt.rstrip().endswith("<think>")
        found = grade(rollout.response, rollout.answer, task=task, options=options, opened_think=opened)
        for name in (task.value if task else "not recognised", "all"):
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
