"""Rules that pick an answer from one row without understanding it.

A rule sees options, files and pixels. The answer only judges the pick. `fitted` has the rules that are fitted
on other rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from tpru_verl.data.audit.looks import Distances, Look, distances, distances_between, look_at
from tpru_verl.data.audit.question import Order, Question, read_question, swaps
from tpru_verl.data.audit.second import PicturesOfRows, shown_in
from tpru_verl.data.checks import problems_of_row
from tpru_verl.data.source.forms import Form, Unit
from tpru_verl.data.source.rows import Row, read_rows
from tpru_verl.data.validate import Finding

UNNAMED_TASK = "not recognised"

Scores = Mapping[int, float]  # option -> score; the keys are the options that a rule picks from


class Rule(NamedTuple):
    """A way to answer without understanding."""

    name: str
    what: str  # in a few words
    family: str  # what to do about it depends on this


class Outcome(NamedTuple):
    """Whether a rule's pick is right, and the probability that a blind pick from the same options is."""

    right: bool
    blind: float


@dataclass
class RuleTally:
    """The picks of a rule on the rows to which it applies, and how many a guess would get right."""

    chance: float = 0
    blind: float = 0
    picks: array[int] = field(default_factory=lambda: array("q"))  # of each row: 2 * its group + right or not

    def add(self, other: RuleTally) -> None:
        self.chance += other.chance
        self.blind += other.blind
        self.picks.extend(other.picks)

    def by_group(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(groups,) rows, and (groups,) rows with a right pick."""
        picks = np.array(self.picks, np.int64)
        group = np.unique(picks >> 1, return_inverse=True)[1]
        return np.bincount(group), np.bincount(group[picks & 1 == 1], minlength=int(group.max()) + 1)


@dataclass(frozen=True)
class Clues:
    """The facts of a row that fitted rules use: a few numbers and, for a sample of the rows, the text."""

    task: str
    group: str  # source_id, or the row's own id where it names none
    question: Question
    text: str | None

    @property
    def blind(self) -> float:
        """Probability that an option drawn from those that are not "None" is right."""
        question = self.question
        return _blind(question, question.but_none()) if question.right >= 0 else question.chance


@dataclass
class Pieces:
    """The results of a unit of rows."""

    rows: int = 0
    unusable: list[Finding] = field(default_factory=list)  # the first problem of each such row
    without_options: int = 0  # rows that answer with a letter and list no options: nothing to pick from
    clues: list[Clues] = field(default_factory=list)
    tallies: dict[tuple[Rule, str], RuleTally] = field(default_factory=dict)  # (rule, task)
    pictures: PicturesOfRows = field(default_factory=PicturesOfRows)  # of the rows that keep their text

    def count(self, rule: Rule, clues: Clues, outcome: Outcome) -> None:
        """Add the rule's outcome on one row."""
        tally = self.tallies.setdefault((rule, clues.task), RuleTally())
        tally.chance += clues.question.chance
        tally.blind += outcome.blind
        group = xxhash.xxh3_64_intdigest(clues.group.encode()) >> 2  # so that the sum below fits
        tally.picks.append(2 * group + outcome.right)


def clues_of_unit(unit: Unit, form: Form, *, seed: int, share: float) -> Pieces:
    """Apply every rule to the unit's rows. Texts are kept for the `share` of the groups."""
    found = Pieces()
    for row in read_rows(unit, form):
        found.rows += 1
        problem = next(problems_of_row(row), None) or _count_row(found, row, seed, share)
        if problem is not None:
            found.unusable.append(Finding.of(row, problem))
    return found


def _count_row(found: Pieces, row: Row, seed: int, share: float) -> str | None:
    """Add a row to `found`. Returns the problem of an image that cannot be decoded, else None."""
    text, images = str(row.problem), row.images()
    question = read_question(text, str(row.answer), len(images))
    if question is None:
        found.without_options += 1
        return None
    try:
        looks = looks_of(question, images)
    except (OSError, SyntaxError, ValueError) as error:
        return f"images: found an image that can't be decoded ({error}), expected a whole one"
    task, group = row.task.value if row.task else UNNAMED_TASK, row.source_id or row.row_id
    kept = _drawn(seed, group) < share * 2**64
    clues = Clues(task, group, question, text if kept else None)
    rng = np.random.default_rng(_drawn(seed, row.row_id))
    for rule, outcome in outcomes_of(question, images, looks, rng):
        found.count(rule, clues, outcome)
    if kept and (shown := shown_in(question, text, task, (row.row_id, group, row.field("scene")), images)):
        found.pictures.rows.append(shown)
        found.pictures.greys |= {xxhash.xxh3_64_digest(images[i]): look.fine for i, look in looks.items()}
    if not kept:  # of the options their number is enough
        clues = replace(clues, question=replace(question, options=("",) * len(question.options)))
    found.clues.append(clues)
    return None


def _drawn(seed: int, name: str) -> int:
    """A number below 2**64 that depends on `seed` and `name` alone."""
    return xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode())


def looks_of(question: Question, images: Sequence[bytes]) -> dict[int, Look]:
    """The look of each image that a rule compares. Raises as `look_at`."""
    choice = bool(question.candidates)
    used = {*question.frames, *question.candidates.values(), *(question.given if choice else ())}
    return {i: look_at(images[i], hashed=choice) for i in sorted(used)}


def outcomes_of(
    question: Question, images: Sequence[bytes], looks: Mapping[int, Look], rng: np.random.Generator
) -> Iterator[tuple[Rule, Outcome]]:
    """The outcome of each rule that applies to the row; `rng` decides between equal scores."""
    luck = [int(place) for place in rng.permutation(max(len(question.options), len(images)))]
    if question.right >= 0:
        scored = [*_letter_rules(question), *_order_option_rules(question)]
        if len(question.candidates) > 1:
            scored += _candidate_rules(question, looks)
            given = {images[i] for i in question.given}
            scored.append((_REPEATS, {o: float(images[i] in given) for o, i in question.candidates.items()}))
            scored += _file_rules({o: looks[i] for o, i in question.candidates.items()})
        for rule, scores in scored:
            if len(set(scores.values())) > 1:  # else it can't tell the options apart
                pick = max(scores, key=lambda option: (scores[option], luck[option]))
                yield rule, Outcome(pick == question.right, _blind(question, scores))
    elif question.order:
        shown = question.order == tuple(range(len(question.order)))
        yield _AS_SHOWN, Outcome(shown, question.chance)
    if question.right < 0 or len(question.orders) > 1:
        for rule, predicted in _orders_of_frames([looks[i] for i in question.frames], luck):
            yield rule, _judged(question, predicted, luck)


def _blind(question: Question, pool: Sequence[int] | Scores) -> float:
    return (question.right in pool) / len(pool)


_REPEATS = Rule("repeats a given frame", "byte for byte", "candidates")


def _letter_rules(question: Question) -> Iterator[tuple[Rule, Scores]]:
    options, none = range(len(question.options)), question.none
    for option in options:
        letter = ascii_uppercase[option]
        pool = options if option == none else question.but_none()
        yield Rule(f"always {letter}", f"option {letter}", "letters"), {o: float(o == option) for o in pool}
    last = options[-1]
    pool = options if last == none else question.but_none()
    yield Rule("always the last", "the last option", "letters"), {o: float(o == last) for o in pool}
    if none >= 0:
        yield Rule("always None", "the option None", "none"), {o: float(o == none) for o in options}
        yield Rule("never None", "any other option", "none"), {o: float(o != none) for o in options}
    texts = [o for o in question.but_none() if o not in question.candidates]
    lengths = {o: float(len(question.options[o])) for o in texts}
    yield Rule("longest text", "the option with most characters", "text"), lengths


# Measure -> in words, and the family of its rules.
_MEASURES = {
    "hash": ("difference of perceptual hashes", "candidates"),
    "pixels": ("difference of grey thumbnails", "candidates"),
    "bytes per pixel": ("ratio of bytes per pixel", "files"),
    "size": ("width or height other", "files"),
    "encoding": ("format, mode, quantisation or header other", "files"),
}


def _candidate_rules(question: Question, looks: Mapping[int, Look]) -> Iterator[tuple[Rule, Scores]]:
    """Rules that compare candidates with the given frames and with each other."""
    place = {image: i for i, image in enumerate(looks)}
    candidates = {option: place[image] for option, image in question.candidates.items()}
    given = [place[image] for image in question.given]
    whom = {"given frames": given}
    if len(given) > 1:
        whom |= {"first given frame": given[:1], "last given frame": given[-1:]}
    for measure, between in distances([*looks.values()]).items():
        how, family = _MEASURES[measure]
        whose = whom if family == "candidates" else {"given frames": given}
        for name, frames in whose.items():
            if frames:
                apart = {o: _mean(between[i, frames]) for o, i in candidates.items()}
                near = {o: -distance for o, distance in apart.items()}
                yield Rule(f"nearest to {name} ({measure})", f"least {how}", family), near
                yield Rule(f"farthest from {name} ({measure})", f"largest {how}", family), apart
        odd = {o: _mean(between[i, [*candidates.values()]]) for o, i in candidates.items()}
        usual = {o: -oddness for o, oddness in odd.items()}
        yield Rule(f"odd candidate out ({measure})", f"largest {how}", family), odd
        yield Rule(f"most usual candidate ({measure})", f"least {how}", family), usual


def _mean(values: Distances) -> float:
    return round(float(values.mean()), 9)  # sums of the same terms in another order are equals, too


def _file_rules(files: Mapping[int, Look]) -> Iterator[tuple[Rule, Scores]]:
    sizes = {option: float(file.bytes) for option, file in files.items()}
    yield Rule("largest file", "candidate with most bytes", "files"), sizes
    smallest = {option: -size for option, size in sizes.items()}
    yield Rule("smallest file", "candidate with fewest bytes", "files"), smallest


_AS_SHOWN = Rule("order as shown", "1 2 3 ..., where it can be chosen", "orders")


def _order_option_rules(question: Question) -> Iterator[tuple[Rule, Scores]]:
    """Rules on the orders that the options list; the frames are not looked at."""
    orders = question.orders
    if len(orders) > 1:
        shown = {o: float(order == tuple(range(len(order)))) for o, order in orders.items()}
        yield _AS_SHOWN, shown
        apart = {
            o: float(sum(swaps(order, other) for other in orders.values())) for o, order in orders.items()
        }
        usual = {o: -distance for o, distance in apart.items()}
        yield Rule("most usual order", "order nearest to the other options", "orders"), usual
        yield Rule("odd order out", "order farthest from the other options", "orders"), apart


def _orders_of_frames(
    frames: Sequence[Look], luck: Sequence[int]
) -> Iterator[tuple[Rule, tuple[Order, ...]]]:
    """Rules that sort the frames, and the orders that they find: several where a rule cannot choose."""
    if len(frames) < 2:
        return
    sizes = [float(frame.bytes) for frame in frames]
    brightness = [float(frame.grey.mean()) for frame in frames]
    for values, rising, falling, family in (
        (sizes, "smallest file first", "largest file first", "files"),
        (brightness, "darkest frame first", "brightest frame first", "brightness"),
    ):
        if len(set(values)) > 1:
            order = tuple(i for *_, i in sorted(zip(values, luck, range(len(frames)), strict=False)))
            yield Rule(rising, "frames sorted", family), (order,)
            yield Rule(falling, "frames sorted", family), (order[::-1],)
    between = distances_between([frame.grey for frame in frames])
    if between.any():
        chain = chain_of(between)
        yield Rule("chain of frames", "always on to the nearest by pixels", "frames"), (chain,)
        yield Rule("chain of frames, backwards", "the same from its end", "frames"), (chain[::-1],)
        either = Rule("chain of frames, either way", "whichever way the options list", "frames")
        yield either, (chain, chain[::-1])


def chain_of(between: Distances) -> Order:
    """Greedy chain: from one of the two frames farthest apart (that shown first) always to the nearest."""
    start = int(np.unravel_index(np.argmax(between), between.shape)[0])
    chain, left = [start], {*range(len(between))} - {start}
    while left:
        chain.append(min(left, key=lambda i: between[chain[-1], i]))
        left.remove(chain[-1])
    return tuple(chain)


def _judged(question: Question, predicted: tuple[Order, ...], luck: Sequence[int]) -> Outcome:
    """The listed order with fewest swaps to a predicted one or, where none are listed, a predicted one."""
    if question.right < 0:
        return Outcome(predicted[luck[0] % len(predicted)] == question.order, question.chance)
    scores = {o: -min(swaps(order, p) for p in predicted) for o, order in question.orders.items()}
    pick = max(scores, key=lambda option: (scores[option], luck[option]))
    return Outcome(pick == question.right, _blind(question, scores))
