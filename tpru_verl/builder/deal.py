"""Letters and negatives, dealt over all rows of a task such that each is met to the row."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from tpru_verl.builder.tasks import LETTERS, seeded
from tpru_verl.sample import Task

BLOCK = 5  # rows among which the places of negatives are drawn


@dataclass
class Deal:
    """For one task of one split; to be asked once a row, in the order of the rows.

    A negative row that cannot be made of the draft at hand is made of the next one that can.
    """

    task: Task
    negatives: float
    mismatches: float
    seed: int
    split: str
    rows: int = 0
    owed: int = 0
    places: set[int] = field(default_factory=set)
    letters: list[str] = field(default_factory=list)
    made: Counter[str] = field(default_factory=Counter)  # kinds of negatives
    none: Counter[str] = field(default_factory=Counter)  # letters of "None of the choices provided"

    def next(self, possible: tuple[str, ...]) -> tuple[str, str, str]:
        """The right letter, the letter of None ("" where it is not offered), and the kind of negative.

        `possible`: the kinds of negative that the row can be.
        """
        number, place = divmod(self.rows, BLOCK)
        rng = seeded(self.seed, "deal", self.split, self.task.value, str(self.rows))
        if place == 0:
            quota = round(self.negatives * BLOCK * (number + 1)) - round(self.negatives * BLOCK * number)
            self.places = {int(i) for i in rng.permutation(BLOCK)[:quota]}
        self.rows += 1
        self.owed += place in self.places
        negative = self._kind(possible) if self.owed else ""
        if negative:
            self.owed -= 1
            self.made[negative] += 1
        if not self.negatives:
            return self._letter(LETTERS[:-1], rng), "", ""
        if self.task is Task.TEMPORAL_REORDERING:  # the published form has None at the end
            last = LETTERS[-1]
            return (last if negative else self._letter(LETTERS[:-1], rng)), last, negative
        letter = self._letter(LETTERS, rng)
        none_letter = letter if negative else self._none_letter(letter, rng)
        self.none[none_letter] += 1
        return letter, none_letter, negative

    def _kind(self, possible: tuple[str, ...]) -> str:
        """The kind that lags behind its share, or the one that can be."""
        lags = self.made["mismatch"] < self.mismatches * (sum(self.made.values()) + 1)
        wanted = "mismatch" if lags and self.mismatches else "missing answer"
        allowed = [kind for kind in possible if kind != "mismatch" or self.mismatches]
        return wanted if wanted in allowed else (allowed[0] if allowed else "")

    def _letter(self, letters: str, rng: np.random.Generator) -> str:
        """Each letter once, shuffled, before any comes again."""
        if not self.letters:
            self.letters = [letters[i] for i in rng.permutation(len(letters))]
        return self.letters.pop()

    def _none_letter(self, letter: str, rng: np.random.Generator) -> str:
        """The letter where None has stood least often."""
        others = [LETTERS[i] for i in rng.permutation(len(LETTERS)) if LETTERS[i] != letter]
        return min(others, key=lambda other: self.none[other])
