"""How the answer of a row is decided: by what a model writes, by what it is let write, or by its scores.

`generate` reads the answer in the response. `guided` lets the model write nothing but a valid answer. `score`
compares the log-probabilities of all valid answers, the `candidates`.

Only the places where candidates part are compared. Before such a place the candidates have the same text, and
after the last one the rest follows from what was chosen: four places of an order determine the fifth. The sum
of the log-probabilities of the tokens chosen there is the score.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import exp
from typing import Any

from tpru_verl.eval.item import Item
from tpru_verl.grading import read_answer
from tpru_verl.sample import IMAGE_TAG

GENERATE, GUIDED, SCORE = DECIDES = ("generate", "guided", "score")
MOST_LABELS = 5  # 120 orders
OPENING = "<answer>"  # where a prompt asks for tags, the answer follows this one
SPACE = " "  # between the numbers of an order
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
    mark = SPACE if labels[0].isdigit() else ""
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
    return tuple(re.findall(r"\s*\S+", candidate) if SPACE in candidate else candidate)


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


@dataclass(frozen=True)
class ToldScores:
    """What an endpoint says of a fork: the steps in its likeliest tokens, and the most of any other step."""

    listed: Mapping[str, float]
    most: float


def told_apart(tops: Sequence[Mapping[str, float]], following: Sequence[str]) -> ToldScores:
    """The steps in the lists of likeliest tokens of one or two positions.

    A token is a step if it is exactly that text, as where nothing but an answer may follow: " A" is not "A".
    The space before a label may be a token of its own. If the server went on with it, the second position has
    the labels, and the space, which all of them share, does not count. Raises ValueError for empty lists.
    """
    if not tops or not tops[0]:
        raise ValueError(
            "found no log-probabilities, expected the likeliest tokens (`top_logprobs`); "
            "--decide generate or guided needs none"
        )
    first = tops[0]
    if following[0].startswith(SPACE) and not any(step in first for step in following):
        if best_of(first) != SPACE or len(tops) < 2 or not tops[1]:
            return ToldScores({}, 0.0)
        first = {SPACE + token: value for token, value in tops[1].items()}
    listed = {step: first[step] for step in following if step in first}
    return ToldScores(listed, min(first.values()))


def filled(told: ToldScores, guided: ToldScores, *, alone: bool) -> ToldScores:
    """`told`, with the steps that are only in the list of an answer which is guided to the fork's steps.

    As nothing else may follow there, all its log-probabilities are higher by one number. A step of both lists
    tells this number. Where the candidates part at this place `alone`, it changes nothing.
    """
    both = next((step for step in told.listed if step in guided.listed), None)
    if both is None and not alone:
        return told
    higher = guided.listed[both] - told.listed[both] if both is not None else 0.0
    return ToldScores(
        {**{step: value - higher for step, value in guided.listed.items()}, **told.listed}, told.most
    )


def best_told(
    paths: Mapping[str, Path], told: Mapping[Path, ToldScores]
) -> tuple[str, dict[str, float], bool]:
    """The best candidate, all scores, and whether all are exact; others are the most that they can be.

    Raises ValueError where a candidate whose score is not exact could be the best.
    """
    steps = {fork.path: fork.following for fork in forks_of([*paths.values()])}
    found = {
        path: {step: told[path].listed.get(step, told[path].most) for step in following}
        for path, following in steps.items()
    }
    scores = scores_of(paths, found)
    exact = {
        candidate: scores[candidate]
        for candidate, path in paths.items()
        if all(step in told[path[:i]].listed for i, step in enumerate(path) if path[:i] in told)
    }
    if not exact or max(exact.values()) < max(scores.values()):
        raise ValueError(
            "found no valid answer that is surely the likeliest one in the endpoint's `top_logprobs`, "
            "expected one; --decide guided needs none, nor does score without --base-url"
        )
    return best_of(exact), scores, len(exact) == len(scores)
