"""Deals letters and negatives over all rows of a task, and writes the rows of each shard.

Each letter is right equally often, and the share of negatives is exact: the counts are off by at most one
row. A shard is a jsonl file here; its pictures are still references.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from tpru_verl.builder.asking import ask
from tpru_verl.builder.drafts import Drafted
from tpru_verl.builder.tasks import LETTERS, TaskOptions, seeded
from tpru_verl.builder.wrong_orders import WrongOrders
from tpru_verl.sample import Task, problems_of

BLOCK = 5  # rows; the places of the negatives are drawn within each block
SHARD_ROWS = 512


@dataclass
class Deal:
    """Deals for one task of one split. Call `next` once for each row, in the order of the rows.

    A draft may be unable to become a negative row. Then the next draft that can becomes one.
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
        """The kind that is behind its share, or else the kind that is possible."""
        lags = self.made["mismatch"] < self.mismatches * (sum(self.made.values()) + 1)
        wanted = "mismatch" if lags and self.mismatches else "missing answer"
        allowed = [kind for kind in possible if kind != "mismatch" or self.mismatches]
        return wanted if wanted in allowed else (allowed[0] if allowed else "")

    def _letter(self, letters: str, rng: np.random.Generator) -> str:
        """Every letter comes once, in random order, before any letter comes again."""
        if not self.letters:
            self.letters = [letters[i] for i in rng.permutation(len(letters))]
        return self.letters.pop()

    def _none_letter(self, letter: str, rng: np.random.Generator) -> str:
        """The letter where None has stood least often."""
        others = [LETTERS[i] for i in rng.permutation(len(LETTERS)) if LETTERS[i] != letter]
        return min(others, key=lambda other: self.none[other])


@dataclass
class Ledger:
    """Counts of the rows that were dealt, for the manifest."""

    rows: Counter[str] = field(default_factory=Counter)  # of each split
    tasks: dict[str, Counter[str]] = field(default_factory=dict)
    scenes: dict[str, Counter[str]] = field(default_factory=dict)
    letters: dict[str, Counter[str]] = field(default_factory=dict)
    negatives: dict[str, Counter[str]] = field(default_factory=dict)
    distances: dict[str, dict[str, int]] = field(default_factory=dict)  # of wrong orders to the right one
    unsound: list[str] = field(default_factory=list)  # rows that no trainer could use, and why


def deal(
    drafted: Iterable[Drafted], folder: Path, options: TaskOptions, seed: int
) -> tuple[list[Path], Ledger]:
    """Write the rows of all drafts, a file for each shard, and return the files and the counts.

    Raises ValueError where no row can be made.
    """
    deals: dict[tuple[str, Task], Deal] = {}
    shards: dict[str, _Shard] = {}
    orders: dict[str, WrongOrders] = {}
    ledger = Ledger()
    for split, row in ((split, row) for clips in drafted for split, rows in clips for row in rows):
        free = options.free_form and not row.asked
        letter = none = negative = ""
        if not free:
            dealer = deals.setdefault(
                (split, row.task), Deal(row.task, options.negatives, options.mismatches, seed, split)
            )
            letter, none, negative = dealer.next(row.negatives)
        of_split = orders.setdefault(split, WrongOrders(dict(options.order_distances)))
        asked = ask(row, letter, none, negative, seeded(seed, row.row_id, "words"), of_split)
        if problems := problems_of(asked.problem, asked.answer, len(asked.images)):
            ledger.unsound.append(f"{row.row_id}: {problems[0]}")
            continue
        line = {**asdict(asked), "row_id": row.row_id, "task": row.task.value, "clip": row.clip}
        line |= {"scene": row.scene, "group": row.group, "seed": seed, "split": split}
        shards.setdefault(split, _Shard(folder, split)).add(line)
        ledger.rows[split] += 1
        ledger.tasks.setdefault(split, Counter())[row.task.value] += 1
        ledger.scenes.setdefault(split, Counter())[row.scene] += 1
        answer = asked.answer if letter else "an order"
        ledger.letters.setdefault(f"{split} {row.task.value}", Counter())[answer] += 1
        ledger.negatives.setdefault(f"{split} {row.task.value}", Counter())[negative or "positive"] += 1
    for split, drawn in orders.items():
        for steps, made in sorted(drawn.made.items()):
            ledger.distances[f"{split}, {steps} steps"] = {str(apart): made[apart] for apart in sorted(made)}
    if not shards:
        first = f"; the first: {ledger.unsound[0]}" if ledger.unsound else ""
        raise ValueError(f"found no clip that a row can be made of{first}")
    return [path for split in sorted(shards) for path in shards[split].close()], ledger


class _Shard:
    """The lines of one split, SHARD_ROWS a file."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self._lines: list[str] = []
        self._paths: list[Path] = []

    def add(self, line: Mapping[str, object]) -> None:
        self._lines.append(json.dumps(line, ensure_ascii=False))
        if len(self._lines) == SHARD_ROWS:
            self._write()

    def close(self) -> list[Path]:
        if self._lines:
            self._write()
        return self._paths

    def _write(self) -> None:
        path = self.folder / f"{self.split}-{len(self._paths):05d}.jsonl"
        path.write_text("\n".join(self._lines) + "\n", encoding="utf-8")
        self._paths.append(path)
        self._lines = []


def read_lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
