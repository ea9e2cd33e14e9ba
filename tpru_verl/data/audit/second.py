"""Rows with a second right answer, or with a right answer where "None" is the answer.

A row does not show what lies in its gap, but other rows of the same source do: they say which frame comes
before which. A wrong candidate that looks like a frame between the two steps beside the gap is right, too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import xxhash
from numpy.typing import NDArray

from tpru_verl.data.audit.question import Question
from tpru_verl.data.likeness import CLEARLY, changes, watched_of
from tpru_verl.sample import Task

_STEP = re.compile(r"step\s?(\d+)\s?[:.)]?\s?<image>", re.IGNORECASE)
_SAMPLE = 160  # pictures of a scene that tell where a clock runs
_LEAST_STEP = 5  # percentile of the changes from step to step that still counts as a visible one
_NEARLY_ALL = 0.9  # share of the sources
_BAR = 4  # of 64 lines: the height of a status bar

SECOND = "a wrong candidate looks like the right one, or like another frame of the gap"
WRONG_NONE = "None is right, but a candidate looks like a frame of the gap"

Links = dict[bytes, set[bytes]]
Greys = Mapping[bytes, NDArray[np.uint8]]  # digest of a picture -> (64, 64)


@dataclass(frozen=True)
class RowPictures:
    """The pictures of one row, by digest. `before` and `after` are the steps beside the gap, or b""."""

    row_id: str
    group: str
    scene: str
    task: str
    lead: str  # the words before the first stop: what a text says that the pictures show
    steps: tuple[bytes, ...]  # in the order that the row's answer tells
    before: bytes = b""
    after: bytes = b""
    right: bytes = b""
    wrong: tuple[bytes, ...] = ()
    none: bool = False


@dataclass
class PicturesOfRows:
    """What rows show, and how these pictures look."""

    rows: list[RowPictures] = field(default_factory=list)
    greys: dict[bytes, NDArray[np.uint8]] = field(default_factory=dict)

    def add(self, other: PicturesOfRows) -> None:
        self.rows += other.rows
        self.greys.update(other.greys)


def shown_in(
    question: Question, problem: str, task: str, names: tuple[str, str, str], images: Sequence[bytes]
) -> RowPictures | None:
    """What a row of these `names` (row, source, scene) shows; None where its parts are not certain."""
    digests = [xxhash.xxh3_64_digest(image) for image in images]
    lead = re.sub(r"[\d\W]+", " ", problem.partition(". ")[0]).casefold()
    none = question.none >= 0 and question.right == question.none
    if question.frames and not question.candidates:
        steps = tuple(digests[question.frames[place]] for place in question.order)
        return RowPictures(*names, task, lead, steps, none=none)
    given = [digests[i] for i in question.given]
    if len(question.candidates) < 2 or not given:
        return None
    numbers = [int(number) for number in _STEP.findall(problem)]
    if len(numbers) != len(given) or numbers != sorted({*numbers}):
        numbers = [*range(1, len(given) + 1)]
        numbers = [n + 1 for n in numbers] if task == Task.PREVIOUS_FRAME_REVIEW.value else numbers
    missing = [number for number in range(1, len(given) + 2) if number not in numbers]
    if len(missing) != 1:
        return None
    place = missing[0] - 1
    right = [digests[question.candidates[question.right]]] if question.right in question.candidates else []
    wrong = tuple(digests[i] for option, i in question.candidates.items() if option != question.right)
    before, after = given[place - 1] if place else b"", given[place] if place < len(given) else b""
    steps = (*given[:place], *right, *given[place:])
    return RowPictures(*names, task, lead, steps, before, after, right[0] if right else b"", wrong, none)


def second_answers(found: PicturesOfRows) -> list[tuple[str, str]]:
    """Row id and reason of each row with a second right answer or a wrong None."""
    least, watched = _visible_step(found), _watched(found)
    links = _links(found.rows)
    described = _Described(found.rows)
    homes: dict[bytes, set[str]] = {}
    for row in found.rows:
        for step in row.steps:
            homes.setdefault(step, set()).add(row.group)
    doubtful: list[tuple[str, str]] = []
    for row in found.rows:
        # The text of a None row may not fit its pictures. Then they hold the right one, as they should.
        if not row.wrong or (row.none and row not in described):
            continue
        later, earlier = links[row.group]
        fits = (_reached(row.before, later) if row.before else {*later}) - {*row.steps}
        fits &= _reached(row.after, earlier) if row.after else {*later}
        across = {shown for shown in row.wrong if shown in homes and row.group not in homes[shown]}
        right = {row.right} if row.right else set[bytes]()
        beside_clock = _without_bar(watched[row.scene])
        if any(
            _like(shown, fits, found.greys, limit, watched[row.scene])
            or _like(shown, right, found.greys, limit, beside_clock)
            for shown in row.wrong
            for limit in [2 * least if shown in across else least]
        ):
            doubtful.append((row.row_id, WRONG_NONE if row.none else SECOND))
    return doubtful


class _Described:
    """The rows whose words fit their pictures, as far as the other rows tell: `row in described`."""

    def __init__(self, rows: Sequence[RowPictures]) -> None:
        self._rows: dict[str, list[RowPictures]] = {}  # of each source, but for those with None
        leads: dict[tuple[str, str], set[str]] = {}
        for row in rows:
            if not row.none:
                self._rows.setdefault(row.group, []).append(row)
                leads.setdefault((row.task, row.group), set()).add(row.lead)
        sources = Counter(task for task, _ in leads)
        alone = Counter((task, *words) for (task, _), words in leads.items() if len(words) == 1)
        # The only words of a task in nearly all sources are the question: they say nothing of the pictures.
        self._plain = {(task, lead) for (task, lead), n in alone.items() if n >= _NEARLY_ALL * sources[task]}

    def __contains__(self, row: RowPictures) -> bool:
        """Whether all rows that tell have the row's words: those with its pictures, or else of its source."""
        if (row.task, row.lead) in self._plain:
            return True
        of_source = self._rows.get(row.group, [])
        near = [other for other in of_source if not {*row.steps}.isdisjoint(other.steps)]
        return {other.lead for other in near or of_source} == {row.lead}


def _without_bar(watched: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that are compared, without the outermost lines at the edge where a clock runs, if any."""
    kept = watched.copy()
    for lines in (kept[:_BAR], kept[-_BAR:]):
        if not lines.all():
            lines[:] = False
    return kept


def _links(rows: Sequence[RowPictures]) -> dict[str, tuple[Links, Links]]:
    """For each source: the frames right after each frame in some row, and those right before."""
    links: dict[str, tuple[Links, Links]] = {}
    for row in rows:
        later, earlier = links.setdefault(row.group, ({}, {}))
        for frame in row.steps:
            later.setdefault(frame, set())
            earlier.setdefault(frame, set())
        for one, other in pairwise(row.steps):
            later[one].add(other)
            earlier[other].add(one)
    return links


def _reached(frame: bytes, links: Links) -> set[bytes]:
    found: set[bytes] = set()
    todo = [frame]
    while todo:
        new = links.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


def _visible_step(found: PicturesOfRows) -> float:
    """The share of the pixels from which these rows take a change for a visible step.

    It is half of the smallest steps: two frames that differ almost as much as these do not look alike.
    """
    pairs = [pair for row in found.rows for pair in pairwise(row.steps)]
    pairs = pairs[:: 1 + len(pairs) // 2000]
    steps = [changes(np.stack([found.greys[one], found.greys[other]]))[0, 1] for one, other in pairs]
    return min(CLEARLY / 4, float(np.percentile(steps, _LEAST_STEP)) / 2) if steps else CLEARLY / 4


def _watched(found: PicturesOfRows) -> dict[str, NDArray[np.bool_]]:
    """For each scene the pixels where no clock runs."""
    scenes: dict[str, dict[bytes, str]] = {}
    for row in found.rows:
        scenes.setdefault(row.scene, {}).update(dict.fromkeys(row.steps, row.group))
    watched: dict[str, NDArray[np.bool_]] = {}
    for scene, frames in scenes.items():
        sample = [*frames.items()][:: 1 + len(frames) // _SAMPLE] or [*frames.items()]
        if sample:
            greys, groups = np.stack([found.greys[digest] for digest, _ in sample]), [g for _, g in sample]
            watched[scene] = watched_of(greys, groups)
    return watched


def _like(shown: bytes, fits: set[bytes], greys: Greys, least: float, watched: NDArray[np.bool_]) -> bool:
    """Whether the picture differs in less than `least` of its pixels from one of those that fit."""
    if not fits:
        return False
    change = changes(np.stack([greys[shown], *(greys[fit] for fit in sorted(fits))]), watched)[0, 1:]
    return bool((change < least).any())
