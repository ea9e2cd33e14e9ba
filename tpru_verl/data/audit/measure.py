"""`tpru data audit`: how often simple rules are right, compared with chance.

`rules` has the rules that look at one row, `fitted` those that are fitted on other rows. Here are the
statistics; `report` puts them into words.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from math import factorial, floor
from string import ascii_uppercase

from tpru_verl.data.audit.fitted import fitted_outcomes, place_of
from tpru_verl.data.audit.question import Order
from tpru_verl.data.audit.rules import Clues, Pieces, Rule, RuleTally, clues_of_unit
from tpru_verl.data.audit.second import second_answers
from tpru_verl.data.source.forms import Source
from tpru_verl.data.validate import Finding
from tpru_verl.data.work import each_unit
from tpru_verl.statistics import design_effect, holm
from tpru_verl.terminal import needs

ALPHA = 0.05  # chance of one false alarm or more, over all rules and tasks together
TEXT_ROWS = 20_000  # about as many give their text to the word models: enough for words, and minutes of work
LEAST_EXPECTED = 5  # rows in each cell, below which the chi-square test is none (Cochran 1954)


@dataclass(frozen=True)
class Prior:
    """How often each answer is right, and how often it would be if all were equally likely."""

    name: str
    task: str  # "" for all rows
    counts: Mapping[str, int]
    expected: Mapping[str, float]
    p: float | None  # of the chi-square test; None where fewer than LEAST_EXPECTED rows a cell are expected


@dataclass(frozen=True)
class RuleResult:
    """A rule's accuracy over the rows to which it applies.

    `chance` is one over the number of options, averaged. `blind` is what a blind pick from the same options
    gets: it lies above `chance` where the rule leaves out "None" and "None" is right too seldom. `low` and
    `high` are Wilson's 95 % interval, `p` is of the one-sided binomial test against the larger of the two;
    chances that vary between rows make the count vary less than binomial (Hoeffding 1956), so it errs
    towards silence. Rows of one source may go right or wrong together: interval and test divide all counts
    by `design_effect`. `holm` is p corrected for all lines of the audit (Holm 1979).
    """

    rule: Rule
    task: str  # "" for rows of several tasks
    n: int
    right: int
    chance: float
    blind: float
    design_effect: float
    low: float
    high: float
    p: float
    holm: float

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def level(self) -> float:
        return max(self.chance, self.blind)

    @property
    def above(self) -> bool:
        """Whether the interval lies above chance. One result in forty does so by luck."""
        return self.low > self.level

    @property
    def beats_chance(self) -> bool:
        return self.holm < ALPHA


@dataclass(frozen=True)
class Audit:
    """All measurements of a source."""

    source: str
    seed: int
    rows: int
    unusable: list[Finding]  # the first problem of each row that was left out
    without_options: int  # rows with a letter for answer and no options in the text: left out, too
    tasks: Mapping[str, int]  # measured rows
    groups: int  # sources: fitted rules are tried on other sources than those they are fitted on
    reverse_listed: float  # share of the rows with orders as options that list the reverse of the right one
    priors: list[Prior]
    lines: list[RuleResult]
    compared: int  # rows in which a second right answer was looked for
    doubtful: list[tuple[str, str]]  # row id and reason of each with a second right answer or a wrong None

    @property
    def shortcuts(self) -> list[RuleResult]:
        """One result for each rule that beats chance, the one over most tasks; largest excess first."""
        widest: dict[str, RuleResult] = {}
        for line in sorted(self.lines, key=lambda line: (line.task != "", line.p)):
            if line.beats_chance:
                widest.setdefault(line.rule.name, line)
        return sorted(widest.values(), key=lambda line: line.level - line.accuracy)


def audit(source: Source, *, seed: int = 0, workers: int | None = None) -> Audit:
    """Measure every rule on `source`. `seed` decides between equal scores and draws the folds.

    Raises ValueError, in one line, where a package is missing, a file is broken or no row can be measured.
    """
    _require(imagehash="imagehash", scipy="scipy", sklearn="scikit-learn")
    share = min(1.0, TEXT_ROWS / source.rows) if source.rows else 1.0
    work = partial(clues_of_unit, seed=seed, share=share)
    found = Pieces()
    for _, pieces in each_unit(source, work, title="Looking for shortcuts", workers=workers):
        found.rows += pieces.rows
        found.unusable += pieces.unusable
        found.without_options += pieces.without_options
        found.clues += pieces.clues
        found.pictures.add(pieces.pictures)
        for key, tally in pieces.tallies.items():
            found.tallies.setdefault(key, RuleTally()).add(tally)
    if not found.clues:
        first = f"; {found.unusable[0]}" if found.unusable else ""
        raise ValueError(f"{source.name}: found no row of {found.rows} that can be measured{first}")
    for rule, clues, outcome in fitted_outcomes(found.clues, seed):
        found.count(rule, clues, outcome)
    tasks = Counter(clues.task for clues in found.clues)
    return Audit(
        source.name,
        seed,
        found.rows,
        found.unusable,
        found.without_options,
        dict(sorted(tasks.items())),
        len({clues.group for clues in found.clues}),
        _reverse_listed(found.clues),
        _priors(found.clues),
        _lines(found.tallies),
        sum(bool(row.wrong) for row in found.pictures.rows),
        second_answers(found.pictures),
    )


def _reverse_listed(clues: Sequence[Clues]) -> float:
    questions = [row.question for row in clues if row.question.order and len(row.question.orders) > 1]
    listed = [question.order[::-1] in question.orders.values() for question in questions]
    return sum(listed) / len(listed) if listed else 0.0


def _require(**packages: str) -> None:
    for module, package in packages.items():
        try:
            importlib.import_module(module)
        except ImportError:
            raise needs("build", package, "an audit") from None


def _lines(tallies: Mapping[tuple[Rule, str], RuleTally]) -> list[RuleResult]:
    """For each rule a result over all its rows and, where these have several tasks, one for each task."""
    by_rule: dict[Rule, dict[str, RuleTally]] = {}
    for (rule, task), tally in tallies.items():
        by_rule.setdefault(rule, {})[task] = tally
    scopes: list[tuple[Rule, str, RuleTally]] = []
    for rule, by_task in by_rule.items():
        if len(by_task) > 1:
            total = RuleTally()
            for tally in by_task.values():
                total.add(tally)
            scopes.append((rule, "", total))
        scopes += [(rule, task, tally) for task, tally in sorted(by_task.items())]
    tests = [_test(tally) for _, _, tally in scopes]
    corrected = holm([p for *_, p in tests])
    lines: list[RuleResult] = []
    for (rule, task, tally), test, adjusted in zip(scopes, tests, corrected, strict=True):
        rows, right = (int(counts.sum()) for counts in tally.by_group())
        lines.append(
            RuleResult(rule, task, rows, right, tally.chance / rows, tally.blind / rows, *test, adjusted)
        )
    return lines


def _test(tally: RuleTally) -> tuple[float, float, float, float]:
    """Design effect, both ends of Wilson's interval, and the probability of so many right picks by luck."""
    from scipy.stats import binomtest

    rows, right = tally.by_group()
    effect = design_effect(rows, right)
    n, hits = max(1, round(rows.sum() / effect)), floor(right.sum() / effect)
    level = min(1.0, max(tally.chance, tally.blind) / int(rows.sum()))
    result = binomtest(min(hits, n), n, level, alternative="greater")
    interval = binomtest(min(hits, n), n).proportion_ci(0.95, method="wilson")
    return effect, float(interval.low), float(interval.high), float(result.pvalue)


def _priors(clues: Sequence[Clues]) -> list[Prior]:
    tasks = sorted({row.task for row in clues})
    scopes = {"": [*clues]} if len(tasks) > 1 else {}
    scopes |= {task: [row for row in clues if row.task == task] for task in tasks}
    return [prior for task, rows in scopes.items() for prior in _priors_of(task, rows)]


def _priors_of(task: str, rows: Sequence[Clues]) -> Iterator[Prior]:
    choices = [row.question for row in rows if row.question.right >= 0]
    letters = [(ascii_uppercase[q.right], ascii_uppercase[: len(q.options)]) for q in choices]
    yield from _prior("right letter", task, letters)
    places = [(place_of(row), len(row.question.candidates)) for row in rows]
    images = [(str(place + 1), [str(i + 1) for i in range(n)]) for place, n in places if place >= 0 and n > 1]
    yield from _prior("place of the right image among the images", task, images)
    offered = [q for q in choices if q.none >= 0]
    nones = [(ascii_uppercase[q.none], ascii_uppercase[: len(q.options)]) for q in offered]
    yield from _prior("letter of None", task, nones)
    yield from _share_of_none(task, [(q.none == q.right, 1 / len(q.options)) for q in offered])
    for n in sorted({len(row.question.order) for row in rows} - {0}):
        orders = [row.question.order for row in rows if len(row.question.order) == n]
        yield from _orders_prior(task, orders, n)


def _prior(name: str, task: str, drawn: Sequence[tuple[str, Sequence[str]]]) -> Iterator[Prior]:
    """From (right value, all possible values) of each row."""
    counts: Counter[str] = Counter({value: 0 for _, values in drawn for value in values})
    expected: Counter[str] = Counter()
    for right, values in drawn:
        counts[right] += 1
        for value in values:
            expected[value] += 1 / len(values)  # pyright: ignore[reportArgumentType]
    if drawn:
        yield _tested(name, task, dict(sorted(counts.items())), expected)


def _share_of_none(task: str, drawn: Sequence[tuple[bool, float]]) -> Iterator[Prior]:
    if drawn:
        right, expected = sum(hit for hit, _ in drawn), sum(chance for _, chance in drawn)
        counts = {"right": right, "wrong": len(drawn) - right}
        yield _tested("None", task, counts, {"right": expected, "wrong": len(drawn) - expected})


def _orders_prior(task: str, orders: Sequence[Order], n: int) -> Iterator[Prior]:
    """Priors of whole orders, of the order as shown, and of the frame at each place."""
    even = len(orders) / factorial(n)
    counts = Counter(orders)
    if even >= LEAST_EXPECTED:  # else there is no test, and what never occurs need not be listed
        counts.update(dict.fromkeys(permutations(range(n)), 0))
    whole = {" ".join(str(label + 1) for label in order): times for order, times in counts.most_common()}
    yield _tested(f"right order of {n}", task, whole, dict.fromkeys(whole, even))
    shown = counts[tuple(range(n))]
    both = {"as shown": shown, "other": len(orders) - shown}
    yield _tested(f"order of {n} as shown", task, both, {"as shown": even, "other": len(orders) - even})
    labels = [str(label + 1) for label in range(n)]
    for place in range(n):
        drawn = [(labels[order[place]], labels) for order in orders]
        yield from _prior(f"frame at place {place + 1} of {n}", task, drawn)


def _tested(name: str, task: str, counts: Mapping[str, int], expected: Mapping[str, float]) -> Prior:
    """A prior with the p value of the chi-square test (Pearson 1900)."""
    from scipy.stats import chisquare

    cells = {value: float(expected[value]) for value in counts}
    sound = len(cells) > 1 and min(cells.values()) >= LEAST_EXPECTED
    p = float(chisquare([*counts.values()], [*cells.values()]).pvalue) if sound else None
    return Prior(name, task, dict(counts), cells, p)
