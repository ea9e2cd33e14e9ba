"""Makes rows of one clip. The result depends on the clip, its neighbours, the options and the seed alone.

A draft has no letters yet, and does not say whether the row is a negative one. Both are decided over all
rows, which balances the letters and makes the share of negatives exact. `ask` then writes the row's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np
import xxhash
from numpy.typing import NDArray

from tpru_verl.builder.candidates import Bench, Ranks, Ref, wrong_frames
from tpru_verl.builder.clips import Clip
from tpru_verl.builder.filters import Filters
from tpru_verl.data.audit.rules import chain_of
from tpru_verl.data.likeness import CLEARLY, changes
from tpru_verl.sample import Task, without_option_marks

WRONG = 3  # wrong options beside the right one and "None of the choices provided"
TRIES = 10  # draws of steps; the draw with the hardest wrong candidates is taken
EVEN = 2.0  # an unevenness of wrong candidates at or below this is good enough
SAMPLED = 8  # frames of a clip, about, that tell whether another one shows the same
ABOUT_CHARACTERS = 400
# Pendulums, random places and noise have 0.26 to 0.40, videos where things move on 0.47 to 0.96.
LEAST_ORDER = {
    Task.TEMPORAL_REORDERING: 0.45,
    Task.NEXT_FRAME_PREDICTION: 0.42,
    Task.PREVIOUS_FRAME_REVIEW: 0.42,
}
UNSEEN = "order not visible"
LETTERS = ascii_uppercase[: WRONG + 2]

# Tags of images, thoughts and answers, chat control tokens such as <|im_end|>, and [INST].
_TAG = re.compile(r"<[/|\uff5c]*[^\W\d_][^<>]*>|\[/?[A-Z_]{3,}\]|<+[|\uff5c]|[|\uff5c]>+")
# Stops at the end of a description: the row writes its own.
_ENDS = " .;,!?\u2026\u3002\uff0e\uff61\uff01\uff1f\uff1b\uff0c\u3001\u0964\u061f\u06d4"

Place = tuple[int, int]  # of a clip: number of its file, number in the file


@dataclass(frozen=True)
class TaskOptions:
    """Which rows are made. Other numbers of steps, free-form orders and several gaps are not in the paper."""

    tasks: tuple[Task, ...] = tuple(Task)
    steps: tuple[int, ...] = (4,)
    rows_per_clip: int = 1  # of each task
    gaps: int = 1  # steps that are missing in next-frame rows
    free_form: bool = False  # orders without options
    negatives: float = 0.2
    mismatches: float = 0.5  # share of the negatives, where a text that does not fit is at hand
    order_distances: tuple[tuple[int, float], ...] = ()  # shares of wrong orders; (): as WrongOrders does
    min_order: float | None = None  # visible order of a clip, below which it gives no row; None: LEAST_ORDER

    def least_order(self, task: Task, *, timed: bool) -> float:
        """The least visible order of a clip for rows of this task.

        Without a number from the user it is for videos alone (`timed`): pictures of steps, such as screens,
        have an order that one has to understand, and need not look alike from one to the next.
        """
        return (LEAST_ORDER[task] if timed else 0.0) if self.min_order is None else self.min_order


@dataclass(frozen=True)
class Near:
    """A clip of the same scene and split, or an earlier one of the same item."""

    clip: Clip
    place: Place


@dataclass(frozen=True)
class Draft:
    """A row without its letters. `wrong` may hold a spare frame, for a row that has no right option."""

    row_id: str
    task: Task
    clip: str
    scene: str
    group: str
    steps: tuple[Ref, ...]  # in their true order
    asked: tuple[int, ...]  # places in `steps` of the missing steps; () for an order
    wrong: tuple[Ref, ...]
    about: str
    not_about: tuple[str, ...]  # texts that do not fit
    chained: bool = False  # whether going on to the nearest picture gives the order, but for its direction

    @property
    def right(self) -> tuple[Ref, ...]:
        return tuple(self.steps[place] for place in self.asked)

    @property
    def negatives(self) -> tuple[str, ...]:
        """The kinds of negative row that this draft can become."""
        spare = not self.asked or len(self.wrong) > WRONG + 1 - len(self.asked)
        return ("mismatch",) * bool(self.not_about) + ("missing answer",) * spare


def seeded(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and the names alone."""
    return np.random.default_rng(xxhash.xxh3_64_intdigest("\0".join(names).encode(), seed))


def drafts_of(
    clip: Clip,
    place: Place,
    near: Sequence[Near],
    wrong_text: str,
    options: TaskOptions,
    filters: Filters,
    seed: int,
    watched: NDArray[np.bool_] | None = None,
) -> Iterator[Draft | tuple[str, str]]:
    """The drafts of a clip or, for a row that cannot be made, its id and the reason.

    `near` are clips that may lend wrong frames and texts, and the earlier clips of the same item.
    `wrong_text` is a wrong text that a model wrote. `watched` are the pixels where no clock runs.
    """
    about = _about(clip)
    others = [
        text for other in near if (text := _about(other.clip)) and not _shows(clip, other.clip, watched)
    ]
    not_about = [text for text in (plain_text(wrong_text), *others) if text and not _same(text, about)]
    bench = _bench(clip, place, near, options, filters, seed, watched)
    asked_before: set[tuple[Ref, ...]] = set()
    for task in options.tasks:
        least = options.least_order(task, timed=clip.time[0] is not None)
        for number in range(options.rows_per_clip):
            row_id = f"{clip.id}/{task.value}/{number}"
            if least and bench.visible_order < least:
                yield row_id, UNSEEN
                continue
            drawn = _draw(task, bench, options, seeded(seed, row_id), asked_before)
            if isinstance(drawn, str):
                yield row_id, drawn
                continue
            steps, asked, wrong = drawn
            texts = tuple(dict.fromkeys(not_about)) if about else ()
            names = (row_id, task, clip.id, clip.scene, clip.group)
            yield Draft(*names, steps, asked, wrong, about, texts, _chained(steps, bench))


def _draw(
    task: Task,
    bench: Bench,
    options: TaskOptions,
    rng: np.random.Generator,
    asked_before: set[tuple[Ref, ...]],
) -> tuple[tuple[Ref, ...], tuple[int, ...], tuple[Ref, ...]] | str:
    """The steps, the places that are asked for, and wrong frames; or the reason why there is no row.

    No order is asked for that is among `asked_before`; a new one is added.
    """
    own = bench.own
    counts = [steps for steps in options.steps if steps <= own]
    if not counts:
        return "fewer frames than steps"
    reason, best, least = "cyclic", None, np.inf
    ranks = Ranks.drawn(WRONG, rng)
    for attempt in range(TRIES if task is not Task.TEMPORAL_REORDERING else 4 * TRIES):
        count = int(rng.choice(counts))
        steps = _spread(own, count, rng, least=1 + (attempt < TRIES))
        if not bench.all_apart(steps):
            continue  # two moments look alike, as in a cycle: nobody could tell their order
        if task is Task.TEMPORAL_REORDERING and bench.comes_back[steps].any():
            continue  # a pendulum passes this place on both ways
        refs = tuple(bench.refs[step] for step in steps)
        if task is Task.TEMPORAL_REORDERING:
            if refs in asked_before:
                reason = "no other steps"
                continue
            asked_before.add(refs)
            return refs, (), ()
        asked = _asked(task, count, options.gaps)
        wanted = WRONG + 1 - len(asked)
        right, *others = (steps[i] for i in asked)  # where several are missing, all of them are shown
        given = [step for i, step in enumerate(steps) if i not in asked]
        fitting = _fitting(steps, asked, bench)
        shown = bench.shown if _needs_others(task, own, options) else own
        pool = [frame for frame in range(shown) if frame not in {*steps, *fitting}]
        pool = [int(i) for i in rng.permutation(pool)]
        wrong, uneven = wrong_frames(bench, right, [*given, *others], fitting, pool, wanted, ranks, rng)
        if uneven < least:
            best, least = (refs, asked, tuple(bench.refs[frame] for frame in wrong)), uneven
        elif not wrong:
            reason = "too few wrong candidates"
        if least <= EVEN or own == count:
            break
    return best or reason


def _chained(steps: tuple[Ref, ...], bench: Bench) -> bool:
    """Whether the audit's rule "chain of frames, either way" finds the order."""
    places = [bench.refs.index(step) for step in steps]
    chain = chain_of(bench.pixels[np.ix_(places, places)])
    return [*chain] in ([*range(len(steps))], [*reversed(range(len(steps)))])


def _spread(frames: int, steps: int, rng: np.random.Generator, *, least: int) -> list[int]:
    """Places of evenly spaced frames, `least` or more apart. A small spacing is more likely than a large one.

    The frames between them and beyond them are hard wrong candidates.
    """
    widest = (frames - 1) // (steps - 1)
    stride = int(rng.integers(min(least, widest), widest + 1, 2).min())
    start = int(rng.integers(0, frames - stride * (steps - 1)))
    return [start + stride * step for step in range(steps)]


def _asked(task: Task, steps: int, gaps: int) -> tuple[int, ...]:
    """The places of the missing steps: the first in previous-frame rows, else the last but one and before."""
    if task is Task.PREVIOUS_FRAME_REVIEW:
        return (0,)
    gaps = max(1, min(gaps, (steps - 1) // 2, WRONG))
    return tuple(range(steps - 2 * gaps, steps - 1, 2)) if gaps > 1 else (steps - 2,)


def _fitting(steps: Sequence[int], asked: Sequence[int], bench: Bench) -> list[int]:
    """Frames that would be right, too: those between the neighbours of a gap.

    Before step 2 these are all earlier frames of the item.
    """
    fitting: set[int] = set()
    for gap in asked:
        fitting |= set(range(steps[gap - 1] if gap else 0, steps[gap + 1]))
        fitting |= set() if gap else set(range(bench.shown, len(bench.refs)))
    return sorted(fitting - set(steps))


def _needs_others(task: Task, own: int, options: TaskOptions) -> bool:
    """Whether wrong frames may come from other clips: for short clips, and for previous-frame rows.

    In a previous-frame row the right frame is the farthest from the end of the clip. Frames of the clip alone
    would give it away.
    """
    return task is Task.PREVIOUS_FRAME_REVIEW or own < min(options.steps) + 2 * (WRONG + 1)


def _bench(
    clip: Clip,
    place: Place,
    near: Sequence[Near],
    options: TaskOptions,
    filters: Filters,
    seed: int,
    watched: NDArray[np.bool_] | None,
) -> Bench:
    """The frames of the clip and, where a task needs them, frames of other clips with the same encoding."""
    own = [(clip, place, frame) for frame in _moments(clip, filters, watched)]
    of_item = [other for other in near if other.clip.item == clip.item and other.place < place]
    earlier = [(other.clip, other.place, frame) for other in of_item for frame in range(len(other.clip))]
    if not any(_needs_others(task, len(own), options) for task in options.tasks):
        return Bench.of(own, [], earlier, filters, watched)
    # Not of the same item: an earlier moment of it would fit before step 2, too.
    alike = [o for o in near if o.clip.form == clip.form and o.clip.item != clip.item]
    foreign = [(other.clip, other.place, frame) for other in alike for frame in range(len(other.clip))]
    chosen = seeded(seed, clip.id, "foreign").permutation(len(foreign))[: 4 * (WRONG + 1)]
    return Bench.of(own, [foreign[i] for i in chosen], earlier, filters, watched)


def _moments(clip: Clip, filters: Filters, watched: NDArray[np.bool_] | None) -> list[int]:
    """The frames of the clip without those where nothing but a clock has gone on."""
    if watched is None or not len(clip):
        return [*range(len(clip))]
    change = changes(clip.grey, watched)
    kept = [0]
    for frame in range(1, len(clip)):
        if change[frame, kept[-1]] >= filters.min_change and change[frame, kept[-1]] > 0:
            kept.append(frame)
    return kept


def _shows(clip: Clip, other: Clip, watched: NDArray[np.bool_] | None) -> bool:
    """Whether the other clip shows most of this one, too: its text may fit then."""
    here, there = (one.grey[:: 1 + len(one) // SAMPLED] for one in (clip, other))
    apart = changes(np.concatenate([here, there]), watched)[: len(here), len(here) :]
    return bool((apart.min(1) < CLEARLY).mean() > 0.5)


def plain_text(text: str) -> str:
    """One line of at most ABOUT_CHARACTERS, without stops at its end, that cannot act in a prompt.

    Tags and chat control tokens are removed. Option marks such as `A.` lose their mark, because the problem's
    own options have to be the only ones.
    """
    while (line := _TAG.sub(" ", text)) != text:  # a removed tag may leave another one: <|im<b>_end|>
        text = line
    line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    # Where a mark is gone, another one may begin: "A.:" leaves "A :".
    while (bare := " ".join(without_option_marks(line).split())) != line:
        line = bare
    if len(line) > ABOUT_CHARACTERS:
        line = line[:ABOUT_CHARACTERS].rpartition(" ")[0]
    return line.rstrip(_ENDS)


def _about(clip: Clip) -> str:
    """The description of the clip. The texts of its steps would list the steps in their order."""
    return plain_text(clip.about)


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()
