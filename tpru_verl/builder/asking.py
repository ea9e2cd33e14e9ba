"""Writes the text of a row: the question, its options and the references to its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from tpru_verl.builder.candidates import Ref
from tpru_verl.builder.tasks import LETTERS, WRONG, Draft
from tpru_verl.builder.wrong_orders import WrongOrders
from tpru_verl.data.source.named import order_question
from tpru_verl.sample import IMAGE_TAG, NONE_OPTION


@dataclass(frozen=True)
class BuiltRow:
    """The text of a row, and references to its pictures."""

    problem: str
    answer: str
    images: tuple[Ref, ...]
    negative: str  # "", "mismatch" or "missing answer"


def ask(
    draft: Draft,
    letter: str,
    none_letter: str,
    negative: str,
    rng: np.random.Generator,
    orders: WrongOrders,
) -> BuiltRow:
    """Write the text of a row in which `letter` is right. In a `negative` row that is `none_letter`."""
    about = draft.about
    if negative == "mismatch":
        about = draft.not_about[int(rng.integers(len(draft.not_about)))]
    shows = f"These photos show {about}. " if about else ""
    if not draft.asked:
        return _ask_order(draft, shows, letter, none_letter, negative, rng, orders)
    return _ask_frames(draft, shows, letter, none_letter, negative, rng)


def _ask_order(
    draft: Draft,
    shows: str,
    letter: str,
    none_letter: str,
    negative: str,
    rng: np.random.Generator,
    orders: WrongOrders,
) -> BuiltRow:
    count = len(draft.steps)
    shuffled = [int(i) for i in rng.permutation(count)]
    images = tuple(draft.steps[i] for i in shuffled)
    right = tuple(shuffled.index(step) + 1 for step in range(count))
    asked = order_question(shows, count)
    if not letter:
        return BuiltRow(asked, " ".join(map(str, right)), images, negative)
    fits = _fits(letter, none_letter, negative, rng)
    wrong = iter(orders.draw(right, rng, listed=bool(fits), chained=draft.chained))
    listed: list[str] = []
    for place in _letters(none_letter):
        if place == none_letter:
            listed.append(NONE_OPTION)
        elif place == fits:
            listed.append(" ".join(map(str, right)))
        else:
            listed.append(" ".join(map(str, next(wrong))))
    return BuiltRow(_with_options(asked, listed), letter, images, negative)


def _letters(none_letter: str) -> str:
    """The letters of the options. Without a None option there is one letter less."""
    return LETTERS if none_letter else LETTERS[:-1]


def _fits(letter: str, none_letter: str, negative: str, rng: np.random.Generator) -> str:
    """The letter of the option that fits the pictures; "" where no option does.

    A mismatch row lists such an option, too. It is wrong there because the text describes other pictures.
    """
    if negative == "mismatch":
        return str(rng.choice([place for place in LETTERS if place != none_letter]))
    return "" if negative else letter


def _ask_frames(
    draft: Draft, shows: str, letter: str, none_letter: str, negative: str, rng: np.random.Generator
) -> BuiltRow:
    given = [i for i in range(len(draft.steps)) if i not in draft.asked]
    frames = "\n".join(f"Step {i + 1}: {IMAGE_TAG}" for i in given)
    numbers = [str(i + 1) for i in given]
    missing = [str(i + 1) for i in draft.asked]
    asked = f"{shows}Steps {_and(numbers)} of a process are given. "
    if len(draft.asked) > 1:
        return _ask_several(draft, asked, frames, missing, letter, none_letter, negative, rng)
    asked += f"Which option shows step {missing[0]}?\n{frames}"
    wrong = [draft.wrong[i] for i in rng.permutation(WRONG)]
    if negative == "missing answer":
        wrong = [draft.wrong[i] for i in rng.permutation(WRONG + 1)]
    candidates: dict[str, Ref] = {}
    fits = _fits(letter, none_letter, negative, rng)
    for place in _letters(none_letter):
        if place != none_letter:
            candidates[place] = draft.right[0] if place == fits else wrong.pop()
    listed = [IMAGE_TAG if place in candidates else NONE_OPTION for place in _letters(none_letter)]
    images = (*(draft.steps[i] for i in given), *candidates.values())
    return BuiltRow(_with_options(asked, listed), letter, images, negative)


def _ask_several(
    draft: Draft,
    asked: str,
    frames: str,
    missing: Sequence[str],
    letter: str,
    none_letter: str,
    negative: str,
    rng: np.random.Generator,
) -> BuiltRow:
    """A row with several gaps. An option names which of four labelled candidates fill them, in order."""
    given = [i for i in range(len(draft.steps)) if i not in draft.asked]
    gaps = len(draft.asked)
    shown = [*draft.right, *draft.wrong[: WRONG + 1 - gaps]]
    if negative == "missing answer":  # one of the right frames is not there
        shown[int(rng.integers(gaps))] = draft.wrong[WRONG + 1 - gaps]
    order = [int(i) for i in rng.permutation(len(shown))]
    labels = {index: order.index(index) + 1 for index in range(len(shown))}
    right = tuple(labels[index] for index in range(gaps))
    pairs = [pair for pair in permutations(range(1, len(shown) + 1), gaps) if pair != right]
    wrong = iter([pairs[i] for i in rng.permutation(len(pairs))])
    fits = _fits(letter, none_letter, negative, rng)
    listed = [
        NONE_OPTION if place == none_letter else _images(right if place == fits else next(wrong))
        for place in _letters(none_letter)
    ]
    candidates = "\n".join(f"Image {i + 1}: {IMAGE_TAG}" for i in range(len(shown)))
    asked += f"Which images show steps {_and(missing)}, in this order?\n{frames}\n{candidates}"
    images = (*(draft.steps[i] for i in given), *(shown[i] for i in order))
    return BuiltRow(_with_options(asked, listed), letter, images, negative)


def _images(labels: Sequence[int]) -> str:
    return ", ".join(f"Image {label}" for label in labels)


def _and(numbers: Sequence[str]) -> str:
    return " and ".join([", ".join(numbers[:-1]), numbers[-1]]) if len(numbers) > 1 else numbers[0]


def _with_options(asked: str, listed: Sequence[str]) -> str:
    options = "\n".join(f"{place}. {text}" for place, text in zip(LETTERS, listed, strict=False))
    return f"{asked}\n{options}"
