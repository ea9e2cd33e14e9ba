"""The one reader of the responses that a run writes: veRL's jsonl a step, EasyR1's `generations.log`."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from tpru_verl.grading import Grade, grade, read_answer
from tpru_verl.sample import Task, parse_options, recognise_task

# The keys of a dump: those of veRL's `rollout_data_dir` and `validation_data_dir`, then those of others.
PROMPTS, RESPONSES = ("input", "prompt", "problem"), ("output", "response", "completion", "prediction")
ANSWERS = ("gts", "ground_truth", "answer", "solution", "label")
_EASYR1 = re.compile(r"^\[(prompt|output|ground_truth|score)\] ", re.MULTILINE)
_TASKS = {task.value: task for task in Task}
_UID_END = re.compile(r"_\d+_\d+$")  # veRL's uid ends in the numbers of the sample and of its output


class Rollout(NamedTuple):
    """One response of a dump.

    `recorded` is the score it was trained with, `group` the prompt it answers, `place` the file, the row and
    the key of its right answer. `row` is the id or the place of the row, and `own_task` the task that the row
    names; our plugin adds both.
    """

    prompt: str
    response: str
    answer: str
    recorded: float | None
    group: str
    place: str
    row: str = ""
    own_task: Task | None = None

    @property
    def task(self) -> Task | None:
        return self.own_task or _question(self.prompt)[0]

    def grade(self) -> Grade:
        """A prompt that ends with `<think>` tells that the chat template has opened the reasoning.

        Raises ValueError, with file, row and key, for a right answer that no response can match.
        """
        task, options = self.task, _question(self.prompt)[1]
        try:
            read_answer(self.answer, options, task)
        except ValueError as error:
            raise ValueError(f"{self.place}: {error}") from None
        opened = self.prompt.rstrip().endswith("<think>")
        return grade(self.response, self.answer, task=task, options=options, opened_think=opened)


@lru_cache(maxsize=8192)  # rows come back in each epoch, and in each validation
def _question(prompt: str) -> tuple[Task | None, dict[str, str] | None]:
    """Task and options of a prompt, which all the responses of its group share."""
    return recognise_task(prompt), parse_options(prompt) or None


def read_rollouts(path: Path, *, cut_off: bool = False) -> Iterator[Rollout]:
    """Rollouts of veRL's jsonl (a file, or the folder of one file a step) or EasyR1's `generations.log`.

    `cut_off`: leave out a last line that is no JSON, as a run that was killed leaves one.

    Raises FileNotFoundError where there is nothing, ValueError with file, line and keys for another form.
    """
    files = files_of(path)
    if not files or not path.exists():
        raise FileNotFoundError(f"{path}: found no rollouts, expected .jsonl, a folder of them, or .log")
    for file in files:
        yield from _read_log(file) if file.suffix == ".log" else _read_jsonl(file, cut_off)


def files_of(path: Path) -> list[Path]:
    """The files that rollouts are read from, in the order of their steps."""
    return sorted(path.glob("*.jsonl"), key=_step) if path.is_dir() else [path]


def files_by_step(folder: Path) -> dict[int, Path]:
    """veRL's dumps in a folder, in the order of their steps."""
    found = sorted((int(file.stem), file) for file in folder.glob("*.jsonl") if file.stem.isdigit())
    return dict(found)


def _step(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdigit() else 0, path.name)


def _read_jsonl(path: Path, cut_off: bool) -> Iterator[Rollout]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                if cut_off and not line.endswith("\n"):
                    return
                raise ValueError(f"{place}: not readable as json: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{place}: found {type(record).__name__}, expected an object")
            yield _rollout(record, place)


def _keys(record: Mapping[str, object]) -> list[str | None]:
    """Those of the prompt, the response and the right answer."""
    found: list[str | None] = []
    for names in (PROMPTS, RESPONSES, ANSWERS):
        for name in names:
            if isinstance(record.get(name), str):
                found.append(name)
                break
        else:
            found.append(None)
    return found


def _rollout(record: Mapping[str, object], place: str) -> Rollout:
    prompt_key, response_key, answer_key = _keys(record)
    if response_key is None or answer_key is None:
        missing = RESPONSES if response_key is None else ANSWERS
        raise ValueError(
            f"{place}: found keys {', '.join(record)}; expected text in one of {', '.join(missing)}"
        )
    score = record.get("score")
    uid = str(record.get("uid") or "")
    prompt = str(record[prompt_key]) if prompt_key else ""
    group = _UID_END.sub("", uid) if uid else prompt or place
    return Rollout(
        prompt,
        str(record[response_key]),
        str(record[answer_key]),
        float(score) if isinstance(score, (int, float)) else None,
        f"{record.get('step', '')}/{group}",
        f"{place}, {answer_key}",
        str(record.get("row_id") or ""),
        _TASKS.get(str(record.get("task"))),
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


class Graded(NamedTuple):
    """A rollout's grades without its response; `number` is its place in the file, from 0."""

    number: int
    task: str
    group: str
    reward: float
    accuracy: float
    partial: float
    format: float
    parsed: str | None
    answer: str
    prompt: str  # one object for all responses of a prompt
    row: str = ""  # its id or place, where the dump names it


def graded(rollouts: Iterable[Rollout]) -> Iterator[Graded]:
    """Grades each; the reward is the recorded one, else the default preset's. Raises as `Rollout.grade`."""
    for number, rollout in enumerate(rollouts):
        found = rollout.grade()
        yield Graded(
            number,
            rollout.task.value if rollout.task else "not recognised",
            rollout.group,
            found.score("tpru") if rollout.recorded is None else rollout.recorded,
            found.accuracy,
            found.partial,
            found.format,
            found.parsed,
            rollout.answer,
            sys.intern(rollout.prompt),
            rollout.row,
        )


def metrics_of(answers: list[Graded]) -> dict[str, float]:
    """The metrics `rollouts/...` of one step, which neither trainer logs itself; empty for no rollouts."""
    if not answers:
        return {}
    rewards = [answer.reward for answer in answers]
    groups: dict[str, set[float]] = {}
    sizes = Counter(answer.group for answer in answers)
    for answer in answers:
        groups.setdefault(answer.group, set()).add(answer.reward)
    several = [len(found) == 1 for group, found in groups.items() if sizes[group] > 1]
    metrics = {
        "reward": fmean(rewards),
        "highest_reward": max(rewards),
        "lowest_reward": min(rewards),
        "accuracy": fmean(answer.accuracy for answer in answers),
        "partial": fmean(answer.partial for answer in answers),
        "format": fmean(answer.format for answer in answers),
        "commonest_answer": _commonest(answer.parsed for answer in answers),
        "commonest_right_answer": _commonest(answer.answer for answer in answers),
    }
    if several:
        metrics["groups_without_variance"] = fmean(several)
    return {f"rollouts/{name}": value for name, value in metrics.items()}


def _commonest(answers: Iterable[str | None]) -> float:
    """Share of the commonest one; what could not be read is no answer, but counts."""
    counts = Counter(answers)
    n = sum(counts.values())
    counts.pop(None, None)
    return max(counts.values(), default=0) / n
