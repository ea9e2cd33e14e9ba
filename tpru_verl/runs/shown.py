"""Which responses of a run a report shows, and with which rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from tpru_verl.runs.history import HistoryReader, Stamp, stamp_of
from tpru_verl.runs.rollouts import Graded, files_by_step, read_rollouts
from tpru_verl.runs.rows import KnownRow, RunRows
from tpru_verl.terminal import visible

if TYPE_CHECKING:
    from tpru_verl.data.view import ShownText

EACH = 6  # of the best, of the worst, of those that became right and of those that became wrong
LONGEST = 4000  # characters of a response
CHANGED = "(its file has changed since it was graded)"


@dataclass(frozen=True)
class Said:
    """A response: `when` says at which step."""

    when: str
    text: str
    parsed: str
    right: bool
    reward: float


@dataclass(frozen=True)
class Shown:
    """A row with what was answered; `row` has its text and pictures for the gallery's `row_of`."""

    task: str
    scene: str
    id: str
    answer: str
    row: ShownText
    said: list[Said]


@dataclass(frozen=True)
class Section:
    """`of`: how many there are of its kind."""

    title: str
    about: str
    of: int
    rows: list[Shown] = field(default_factory=list)


_Pick = list[tuple[int, Graded]]  # the responses to one row that are shown together, each with its step
Key = tuple[object, ...]


def sections_of(reader: HistoryReader, rows: RunRows) -> list[Section]:
    """Best and worst responses of the last quarter of the steps, and what changed between validations.

    Where none is better than another, some of them.
    """
    picked: list[tuple[str, str, int, list[_Pick], Path | None]] = []
    steps = sorted(reader.rollouts)
    late = [(step, a) for step in steps[-max(1, len(steps) // 4) :] for a in reader.rollouts[step]]
    if late:
        when = steps_of([step for step, _ in late])
        about = f"Of the {len(late):,} responses to {when}, one for each prompt."
        kinds = [("Best responses", -1), ("Worst responses", 1)]
        if len({(answer.reward, answer.partial) for _, answer in late}) == 1:  # none is better than another
            kinds = [(f"Responses, all with reward {late[0][1].reward:.3g}", -1)]
        for title, sign in kinds:
            picks = [[pair] for pair in _extreme(late, sign)]
            picked.append((title, about, len(late), picks, reader.files.rollouts))
    validated = sorted(reader.validation)
    if len(validated) > 1:
        first, last = validated[0], validated[-1]
        pairs = _pairs(reader.validation[first], reader.validation[last], rows)
        for title, was, is_now in (("Became right", False, True), ("Became wrong", True, False)):
            changed = [(a, b) for a, b in pairs if (a.accuracy == 1, b.accuracy == 1) == (was, is_now)]
            picks = [[(first, a), (last, b)] for a, b in _spread(changed, lambda pair: pair[0])]
            about = f"Of {len(pairs):,} rows that were validated at step {first} and at step {last}."
            picked.append((title, about, len(changed), picks, reader.files.validation))
    known = {
        id(answer): row
        for *_, picks, _ in picked
        for pick in picks
        for _, answer in pick
        if (row := rows.find(answer))
    }
    texts = rows.shown(row.place for row in known.values())
    return [
        Section(title, about, of, [_shown(pick, known, texts, reader, path) for pick in picks])
        for title, about, of, picks, path in picked
        if picks
    ]


def steps_of(numbers: Sequence[int]) -> str:
    """In words, for numbers in order."""
    first, last = numbers[0], numbers[-1]
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _extreme(answers: Sequence[tuple[int, Graded]], sign: int) -> list[tuple[int, Graded]]:
    """Those of the highest (-1) or lowest (1) reward, one a prompt, tasks in turn; ties by their text."""
    ranked = sorted(
        answers, key=lambda pair: (sign * pair[1].reward, sign * pair[1].partial, _random(pair[1]))
    )
    by_prompt: dict[str, tuple[int, Graded]] = {}
    for pair in ranked:
        by_prompt.setdefault(pair[1].prompt, pair)
    best = [pair for pair in by_prompt.values() if pair[1].reward == ranked[0][1].reward]
    return _spread(best if len(best) >= EACH else list(by_prompt.values()), lambda pair: pair[1])


def _random(answer: Graded) -> int:
    return xxhash.xxh3_64_intdigest(f"{answer.group} {answer.number}".encode(errors="replace"))


def _spread(items: list, graded_of) -> list:
    """EACH of the items, from each task in turn."""
    tasks: dict[str, list] = {}
    for item in items:
        tasks.setdefault(graded_of(item).task, []).append(item)
    turns = chain.from_iterable(zip_longest(*(tasks[task] for task in sorted(tasks))))
    return [item for item in turns if item is not None][:EACH]


def _pairs(before: Sequence[Graded], after: Sequence[Graded], rows: RunRows) -> list[tuple[Graded, Graded]]:
    """The answers to the same row in two validations; rows that cannot be told apart are left out."""
    earlier, later = _by_row(before, rows), _by_row(after, rows)
    return [(earlier[key], later[key]) for key in earlier if key in later]


def _by_row(answers: Sequence[Graded], rows: RunRows) -> dict[Key, Graded]:
    found: dict[Key, Graded | None] = {}
    for answer in answers:
        candidates = rows.candidates(answer)
        if len(candidates) > 1:
            continue
        key: Key = candidates[0].place if candidates else (answer.prompt, answer.answer)
        same = found.get(key)
        if key not in found:
            found[key] = answer
        elif same is None or same.group != answer.group:  # another prompt, not another sample of this one
            found[key] = None
    return {key: answer for key, answer in found.items() if answer is not None}


def _shown(
    pick: _Pick,
    known: Mapping[int, KnownRow],
    texts: Mapping[tuple[str, int], ShownText],
    reader: HistoryReader,
    path: Path | None,
) -> Shown:
    from tpru_verl.data.view import shown_text

    answer = pick[0][1]
    row = known.get(id(answer))
    text = texts.get(row.place) if row else None
    return Shown(
        answer.task,
        row.scene if row else "",
        row.id if row else "",
        answer.answer,
        text or shown_text(visible(answer.prompt), [], {}),  # of a dump, which has no images: as it is
        [_said(step, graded, reader, path) for step, graded in pick],
    )


def _said(step: int, answer: Graded, reader: HistoryReader, path: Path | None) -> Said:
    text = visible(_response(step, answer, reader, path)) if path else ""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ... ({len(text) - LONGEST:,} more characters)"
    parsed = visible(answer.parsed) if answer.parsed else "no answer"
    return Said(f"step {step}", text, parsed, answer.accuracy == 1, answer.reward)


def _response(step: int, answer: Graded, reader: HistoryReader, path: Path) -> str:
    """The text that was graded. A resumed run may put another one in its place at any moment.

    EasyR1's one file has the responses of all validations, which `number` counts.
    """
    with suppress(OSError, ValueError, LookupError):
        file = files_by_step(path)[step] if path.is_dir() else path
        if reader.is_as_graded(file):
            return _responses(file, stamp_of(file))[answer.number]
    return CHANGED


@lru_cache(maxsize=64)
def _responses(file: Path, _: Stamp) -> list[str]:
    return [rollout.response for rollout in read_rollouts(file, cut_off=True)]
