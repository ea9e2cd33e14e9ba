"""How the answer of a row is decided: by what a model writes, by what it is let write, or by its scores.

`generate` reads the answer in the response. `guided` lets the model write nothing but a valid answer. `score`
compares the log-probabilities of all valid answers, the `candidates`.

Only the places where candidates part are compared. Before such a place the candidates have the same text, and
after the last one the rest follows from what was chosen: four places of an order determine the fifth. The sum
of the log-probabilities of the tokens chosen there is the score.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import exp, log
from typing import Any

from tpru_verl.eval.item import Item
from tpru_verl.grading import read_answer
from tpru_verl.sample import IMAGE_TAG

GENERATE, GUIDED, SCORE = DECIDES = ("generate", "guided", "score")
MOST_LABELS = 5  # 120 orders
OPENING = "<answer>"  # where a prompt asks for tags, the answer follows this one
CLOSING = "</think>\n\n"  # of reasoning that did not come to its end

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Fork:
    """A place where candidates part: the steps before it, and those that may follow."""

    path: Path
    following: Path


def candidates_of(item: Item) -> tuple[str, ...]:
    """All valid answers: letters of options, or orders such as "4 2 3 1" or "BDAC".

    A row without an answer is ordered by the numbers of its images. Raises ValueError, in one line, for a row
    whose answers cannot be listed.
    """
    if len(item.options) == 1:
        raise ValueError("found 1 option, expected 2 or more")
    pictures = {*item.options.values()} <= {IMAGE_TAG}  # "Image A: <image>" may be an option or a label
    labels = sorted(read_answer(item.answer).split()) if item.answer and pictures else []
    if item.options and labels != [*item.options]:
        return tuple(item.options)
    if item.accepted:
        raise ValueError("found an answer in words, expected options or an order")
    labels = labels or [str(i + 1) for i in range(len(item.images))]
    if not 2 <= len(labels) <= MOST_LABELS:
        raise ValueError(
            f"found an order of {len(labels)}, expected options or an order of 2 to {MOST_LABELS}"
        )
    mark = " " if labels[0].isdigit() else ""
    return tuple(mark.join(order) for order in permutations(labels))


def opening_after(reasoning: str, *, cut_off: bool) -> str:
    """How a response begins that reasoned first. Reasoning that has no end gets one before the answer.

    `cut_off`: it reached its most tokens. It may have begun in the prompt then, so that it has no `<think>`.
    """
    closed = reasoning.rfind("</think>")
    is_open = reasoning.rfind("<think>") > closed or (cut_off and closed < 0)
    return f"{reasoning}{CLOSING if is_open else ''}{OPENING}"


def steps_of(candidate: str) -> Path:
    """The labels of a candidate, each with the space before it: `("4", " 2", " 3", " 1")`."""
    return tuple(re.findall(r"\s*\S+", candidate) if " " in candidate else candidate)


def forks_of(paths: Sequence[Path]) -> list[Fork]:
    """All places where some of the paths part, the shortest first."""
    following: dict[Path, dict[Hashable, None]] = {}
    for path in paths:
        for depth, step in enumerate(path):
            following.setdefault(path[:depth], {})[step] = None
    forks = [Fork(path, tuple(steps)) for path, steps in following.items() if len(steps) > 1]
    return sorted(forks, key=lambda fork: len(fork.path))


def scores_of(paths: Mapping[str, Path], found: Mapping[Path, Mapping[Any, float]]) -> dict[str, float]:
    """The score of each candidate; `found` has the log-probabilities of the steps after each fork's path."""
    return {
        candidate: sum(found[path[:i]][step] for i, step in enumerate(path) if path[:i] in found)
        for candidate, path in paths.items()
    }


def probabilities_of(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores as probabilities of the candidates alone: they sum to 1."""
    most = max(scores.values())
    weights = {candidate: exp(score - most) for candidate, score in scores.items()}
    total = sum(weights.values())
    return {candidate: weight / total for candidate, weight in weights.items()}


def best_of(scores: Mapping[str, float]) -> str:
    """The candidate with the highest score, the first of equal ones."""
    return max(scores, key=lambda candidate: scores[candidate])


def told_apart(tops: Sequence[Mapping[str, float]], following: Sequence[str]) -> dict[str, float]:
    """Log-probabilities of the steps in the lists of likeliest tokens of one or two positions.

    A token counts for a step whatever white space it has. Where the likeliest token is white space alone, the
    second position has the steps. A step that is in no list gets the lowest value of the list, which is the
    most that it can have. Raises ValueError for empty lists.
    """
    before = 0.0
    if len(tops) > 1 and tops[0] and not best_of(tops[0]).strip():
        before, tops = tops[0][best_of(tops[0])], tops[1:]
    if not tops or not tops[0]:
        raise ValueError(
            "found no log-probabilities, expected the likeliest tokens (`top_logprobs`); "
            "--decide generate or guided needs none"
        )
    least = min(tops[0].values())
    chance: Callable[[str], float] = lambda step: sum(  # noqa: E731
        exp(value) for token, value in tops[0].items() if token.strip() == step.strip()
    )
    return {step: before + (log(found) if (found := chance(step)) else least) for step in following}
