"""Rules that are fitted on rows of other sources: the most frequent answer, and words that go with answers.

A rule is never tried on a source that it was fitted on, because words that name the source would give its
rows away. Where answers are balanced exactly, such a guess falls below chance: an answer that is more
frequent in the other sources is less frequent in this one.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpru_verl.data.audit.rules import Clues, Outcome, Rule

FOLDS = 5
MAX_TERMS = 20_000

Ints = NDArray[np.int64]


def fitted_outcomes(clues: Sequence[Clues], seed: int) -> Iterator[tuple[Rule, Clues, Outcome]]:
    """The outcome of each fitted rule on each row to which it applies. Rules are fitted for each task."""
    for task in sorted({row.task for row in clues}):
        of_task = [row for row in clues if row.task == task]
        choices = [row for row in of_task if row.question.right >= 0]
        letters = [row.question.right for row in choices]
        letter = Rule("most frequent letter", "fitted on other sources", "letters")
        yield from _judged(letter, choices, letters, _most_frequent(letters, choices, seed))
        yield from _places(choices, seed)
        open_ = [row for row in of_task if row.question.right < 0]
        orders = [row.question.order for row in open_]
        order = Rule("most frequent order", "fitted on other sources", "orders")
        yield from _judged(order, open_, orders, _most_frequent(orders, open_, seed))
        worded = [row for row in choices if row.text is not None]
        words = Rule("words of the row", "logistic regression, text to letter", "text")
        yield from _judged(words, worded, [r.question.right for r in worded], _by_words(worded, seed))
        listed = [row for row in worded if len(_text_options(row)) > 1]
        option = Rule("words of the options", "logistic regression, option to right or wrong", "text")
        yield from _judged(option, listed, [r.question.right for r in listed], _by_option(listed, seed))


def _judged(
    rule: Rule, rows: Sequence[Clues], truth: Sequence[Hashable], guesses: Sequence[Hashable | None]
) -> Iterator[tuple[Rule, Clues, Outcome]]:
    """Outcomes of one guess for each row; None stands for no guess, where there are no other sources."""
    for row, right, guess in zip(rows, truth, guesses, strict=True):
        if guess is not None:
            yield rule, row, Outcome(guess == right, row.blind)


def _places(rows: Sequence[Clues], seed: int) -> Iterator[tuple[Rule, Clues, Outcome]]:
    """Guess the place among the options that are images. It differs from the letter after a None option."""
    rule = Rule("most frequent place", "of the right image among the images, fitted", "letters")
    rows = [row for row in rows if len(row.question.candidates) > 1]
    truth = [place_of(row) for row in rows]
    guesses = _most_frequent(truth, rows, seed, never=-1)
    for row, place, guess in zip(rows, truth, guesses, strict=True):
        if guess is not None:
            yield rule, row, Outcome(place == guess, (place >= 0) / len(row.question.candidates))


def place_of(row: Clues) -> int:
    """Place of the right option among the options that are images; -1 where the right one is no image."""
    question = row.question
    return sorted(question.candidates).index(question.right) if question.right in question.candidates else -1


def folds_of(groups: Sequence[str], seed: int) -> Ints | None:
    """Fold of each row. A group is in one fold, and folds are of similar size. None for one group.

    Groups are shuffled: rows that were made in turns (letter A, B, C, ...) would meet the turn of the folds.
    """
    sizes = Counter(groups)
    names = sorted(sizes)
    if len(names) < 2:
        return None
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    filled = [0] * min(FOLDS, len(names))
    fold: dict[str, int] = {}
    for name in sorted(shuffled, key=lambda name: -sizes[name]):
        fold[name] = filled.index(min(filled))
        filled[fold[name]] += sizes[name]
    return np.array([fold[name] for name in groups])


def _most_frequent(
    values: Sequence[Hashable], rows: Sequence[Clues], seed: int, never: Hashable = None
) -> list[Hashable | None]:
    """For each row the most frequent value of the other folds; `never` is not counted."""
    folds = folds_of([row.group for row in rows], seed)
    if folds is None:
        return [None] * len(rows)
    best: list[Hashable | None] = []
    for fold in range(int(folds.max()) + 1):
        counts = Counter(v for v, other in zip(values, folds, strict=True) if other != fold and v != never)
        best.append(counts.most_common(1)[0][0] if counts else None)
    return [best[fold] for fold in folds]


def _by_words(rows: Sequence[Clues], seed: int) -> list[int | None]:
    """For each row the letter that the words of its text make most likely, by a model of other sources."""
    folds = folds_of([row.group for row in rows], seed)
    if folds is None:
        return [None] * len(rows)
    labels = np.array([row.question.right for row in rows])
    chances = _cross_validated([row.text or "" for row in rows], labels, folds, folds)
    for row, line in zip(rows, chances, strict=True):
        line[len(row.question.options) :] = -1
    return [int(guess) for guess in chances.argmax(axis=1)]


def _by_option(rows: Sequence[Clues], seed: int) -> list[int | None]:
    """For each row the option whose words make it most likely to be right. Equal ones are drawn."""
    folds = folds_of([row.group for row in rows], seed)
    if folds is None:
        return [None] * len(rows)
    pairs = [(i, option) for i, row in enumerate(rows) for option in _text_options(row)]
    texts = [_words_of(rows[i], option) for i, option in pairs]
    labels = np.array([int(rows[i].question.right == option) for i, option in pairs])
    chances = _cross_validated(texts, labels, np.array([folds[i] for i, _ in pairs]), folds)
    likely = [float(line[1]) if len(line) > 1 else 0.0 for line in chances]
    luck = np.random.default_rng(seed).permutation(len(pairs))
    best: dict[int, tuple[float, int, int]] = {}
    for (i, option), chance, draw in zip(pairs, likely, luck, strict=True):
        best[i] = max(best.get(i, (-1.0, 0, 0)), (round(chance, 9), int(draw), option))
    return [best[i][2] for i in range(len(rows))]


def _text_options(row: Clues) -> list[int]:
    """Options that are texts, without the None option."""
    return [option for option in row.question.but_none() if option not in row.question.candidates]


def _words_of(row: Clues, option: int) -> str:
    """The option's text; an order also as a whole and digit by digit with its place."""
    order = row.question.orders.get(option, ())
    marks = [f"order{''.join(map(str, order))}"] if order else []
    marks += [f"place{place}is{label}" for place, label in enumerate(order)]
    return " ".join([row.question.options[option], *marks])


def _cross_validated(texts: Sequence[str], labels: Ints, folds: Ints, all_folds: Ints) -> NDArray[np.float64]:
    """(texts, largest label + 1) probabilities, each by a model that saw no text of the same fold.

    Binary uni- and bigrams; classes weigh alike, so that how often an answer is right is not found again.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    # One sign is a word, too: letters of options, digits of orders.
    vectorizer = CountVectorizer(
        binary=True, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", max_features=MAX_TERMS
    )
    terms: Any = vectorizer.fit_transform(texts)
    chances = np.zeros((len(texts), int(labels.max()) + 1))
    for fold in range(int(all_folds.max()) + 1):
        held = folds == fold
        seen = np.unique(labels[~held])
        if len(seen) < 2:
            chances[np.ix_(held, seen)] = 1
        elif held.any():
            model = LogisticRegression(class_weight="balanced", max_iter=200, tol=1e-3)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for a baseline
                model.fit(terms[~held], labels[~held])
            chances[np.ix_(held, model.classes_)] = model.predict_proba(terms[held])
    return chances
