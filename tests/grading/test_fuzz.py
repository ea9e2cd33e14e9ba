"""The grader over very many strings: it raises on none, and `paper` is the published function."""

import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from tpru_verl.grading import PRESETS, grade

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
BITS = (
    *TAGS,
    "<",
    ">",
    "/",
    "< ",
    " >",
    "</ ",
    "think",
    "answer",
    "\\boxed{",
    "}",
    "(",
    ")",
    "**",
    ".",
    "'",
    '"',
)
LETTERS = (*"ABCDEc", "AC", "4231", "4 2 3 1", "image 3", "option ", "or", "none", "->", ",")
SPACES = (" ", "\n", "\t", "\u00a0", "\u2003", "\x1c")
ODD = (
    "\x00",
    "\ud800",
    "\U0001f600",
    "\uff23",
    "\ufdfa",
    "\u0130",
    "\u0301",
    "\u00df",
    "\u2167",
    "\u0664",
    "1" * 300,
)
OPTIONS = {"A": "1 2 3 4", "B": "a red ball", "C": "<image>", "D": "4 2 3 1", "E": "None of the choices"}
TRUTHS = ("C", "D", "4 2 3 1", "CABD", "", "(c)", "none", "\ud800")


def responses(seed: int, count: int, pieces: tuple[str, ...]) -> Iterator[str]:
    """Half of them heaps of pieces, half well-formed responses with some pieces dropped or put in."""
    rng = random.Random(seed)
    pick, number, whole = rng.choice, rng.random, TAGS
    for i in range(count):
        if i % 2:
            yield "".join(rng.choices(pieces, k=int(number() * 10)))
            continue
        parts = [whole[0], pick(pieces), whole[1], whole[2], pick(LETTERS), whole[3]]
        for _ in range(int(number() * 3)):
            at = int(number() * len(parts))
            parts[at : at + int(number() * 2)] = [pick(pieces)] if number() < 0.8 else []
        yield "".join(parts)


def described(response: str, truth: str) -> float:
    """The published reward as its description has it, with regular expressions."""
    text = re.sub(r"\s*([<>/])\s*", r"\1", response)
    formed = re.fullmatch(r"<think>.*</think><answer>[A-Z]+</answer>", text, re.DOTALL)
    first = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    right = first is not None and re.sub(r"^[\"']+|[\"']+\Z", "", first[1].strip()) == truth
    return (1.0 - 0.1) * (1.0 if right else 0.0) + 0.1 * (0.2 if formed else 0.0)


@pytest.mark.parametrize("truth", ["C", "4 2 3 1"])
def test_paper_is_the_published_function_on_50_000_strings(truth: str) -> None:
    earned: Counter[float] = Counter()
    for response in responses(len(truth), 50_000, (*BITS, *LETTERS, *SPACES)):
        score = grade(response, truth).score("paper")
        assert score == described(response, truth), response
        earned[round(score, 9)] += 1
    assert set(earned) >= {0.0, 0.02, 0.9}  # each way through the function was taken, many times over
    assert all(times >= 100 for times in earned.values())
    assert len(earned) == (4 if truth == "C" else 3)  # digits never have the published form


def test_a_million_strings_raise_nothing() -> None:
    earned: Counter[tuple[float, float]] = Counter()
    for i, response in enumerate(responses(1, 1_000_000, (*BITS, *LETTERS, *SPACES, *ODD))):
        truth = TRUTHS[i // 2 % len(TRUTHS)]
        result = grade(response, truth, options=OPTIONS if i % 3 else None)
        if result.parsed is None:
            assert result.accuracy == result.partial == 0.0, response
        assert result.accuracy <= result.partial <= 1, response
        earned[result.accuracy, result.format] += 1
        if i % 10 == 0:
            assert all(0 <= result.score(preset) <= 1 for preset in PRESETS), response
    assert set(earned) == {(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)}
    assert all(times >= 1000 for times in earned.values())
