"""The parts of a row's text: options, the right one, orders, and the images that they name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from string import ascii_uppercase

from tpru_verl.sample import IMAGE_TAG, is_none_option, parse_options

_DIGITS = "123456789"


Order = tuple[int, ...]  # places of frames among those shown, first moment first


@dataclass(frozen=True)
class Question:
    """The parts of a row's text. Options and images are numbered from 0."""

    options: tuple[str, ...]
    right: int  # -1 where the answer is an order and no letter
    none: int  # the option "None of the choices provided"; -1 where it is not offered
    orders: Mapping[int, Order]  # of the options that are orders
    order: Order  # the right one; () where the answer tells none
    given: tuple[int, ...]  # images before those of the options
    candidates: Mapping[int, int]  # option that is an image -> image

    @property
    def chance(self) -> float:
        """Chance of a guess: one of the options or, where the answer is an order, any order."""
        return 1 / (len(self.options) if self.right >= 0 else factorial(len(self.order)))

    @property
    def frames(self) -> tuple[int, ...]:
        """The images that the orders are about; () where this is not certain."""
        labels = len(self.order) or len(next(iter(self.orders.values()), ()))
        return next(
            (f for f in (self.given, (*self.candidates.values(),)) if labels and len(f) == labels), ()
        )

    def but_none(self) -> list[int]:
        return [option for option in range(len(self.options)) if option != self.none]


def read_question(problem: str, answer: str, images: int) -> Question | None:
    """The parts of a usable row's text; None where it lists no options and the answer is no order."""
    letters, answer = parse_options(problem), answer.strip()
    options = tuple(letters.values())
    candidates = {
        i: _image_of(problem, letter)
        for i, (letter, text) in enumerate(letters.items())
        if text.count(IMAGE_TAG) == 1
    }
    orders = {i: order for i, text in enumerate(options) if (order := _order(text, _DIGITS))}
    if len({len(order) for order in orders.values()}) > 1:
        orders = {}
    right = list(letters).index(answer) if answer in letters else -1
    order = (
        orders.get(right, ()) if right >= 0 else _order(answer, _DIGITS) or _order(answer, ascii_uppercase)
    )
    if right < 0 and not order:
        return None
    none = next((i for i, text in enumerate(options) if is_none_option(text)), -1)
    given = tuple(range(min(candidates.values(), default=images)))
    return Question(options, right, none, orders, order, given, candidates)


def _image_of(problem: str, letter: str) -> int:
    """Number of the image that stands behind an option's letter, where it does so last."""
    tag = re.escape(IMAGE_TAG)
    pattern = rf"(?<![A-Za-z0-9])\(?{letter}[.):](?:(?!{tag}).)*{tag}"
    *_, match = re.finditer(pattern, problem, re.DOTALL)
    return problem[: match.end()].count(IMAGE_TAG) - 1


def _order(text: str, labels: str) -> Order:
    """ "3, 1, 2" -> (2, 0, 1); () for what is no order of the first labels."""
    found = [character for character in text if character not in " ,->"]
    sound = len(found) > 1 and "".join(sorted(found)) == labels[: len(found)]
    return tuple(labels.index(label) for label in found) if sound else ()


def swaps(one: Order, other: Order) -> int:
    """Kendall's distance: the number of pairs that the two orders put in opposite order."""
    places = [other.index(label) for label in one]
    return sum(a > b for a, b in combinations(places, 2))
