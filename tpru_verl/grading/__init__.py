"""Grades one response against one answer.  Standard library only, linear time, raises on no response.

What counts is the answer that ends the response, in `<answer>...</answer>` after the reasoning.  The
reading is tolerant of how an answer is written and strict about what it says: two different answers, one
outside of the options, or a tag nested or left open, are none.  The ground truth is read by the same rules.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from string import ascii_uppercase
from typing import NamedTuple

PRESETS = ("tpru", "tpru_partial", "paper")
MEASURES = ("exact", "positions", "kendall", "lis", "adjacent")

_MAX_ANSWER = 256  # characters; a longer answer is an essay, not a choice
_MAX_TAGS = 16  # reasonings or answers in one response; more are no answer, and would not be read in time
_MAX_LAYERS = 8  # of brackets and Markdown around an answer
_GRID = 64  # partial credit and penalties are multiples of 1/64: eight bits, exact in bfloat16
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_LAYERS = (
    *((f"\\{name}{{", "}") for name in ("boxed", "text", "mathrm", "textbf", "mathbf")),
    *(("(", ")"), ("[", "]"), ("{", "}")),
)
_LEAD = re.compile(  # "The correct answer is", "Option", "Answer: Image"
    r"(?:(?:the\s+)?(?:(?:final|correct|right|best)\s+)?"
    r"(?:answer|option|choice|letter|order|sequence|image|frame)s?(?![a-z])"
    r"\s*(?:is\b\s*)?[:=]?\s*){1,2}",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]+(.*)|\s+[-–—(\[](.*))?", re.DOTALL)  # noqa: RUF001
_LONE_LETTER = re.compile(r"(?<![\w'’])[A-Za-z](?!\w)")  # noqa: RUF001
_ORDER_WORD = re.compile(
    r"(?<![a-z])(?:(?:image|frame|photo|picture|panel|step)s?|and|then|\\(?:rightarrow|to))(?![a-z])",
    re.IGNORECASE,
)
_ORDER_SEPARATORS = str.maketrans(dict.fromkeys(",;->→⟶⇒➔➜–—=#、()[]{}", " "))  # noqa: RUF001
_DECORATION = str.maketrans("", "", '*_`$"“”')


@dataclass(frozen=True)
class Grade:
    """What one response earned: every number lies in [0, 1].

    `parsed` is the answer as read ("C", "4 2 3 1"), None when there is none; `partial` is the share of
    pairs in the right order (`order_credit`, "kendall") where the answer is an order, or the letter of
    an option that is one, and the accuracy elsewhere.
    """

    accuracy: float
    format: float
    partial: float
    parsed: str | None
    _graded: tuple[str, str] = field(default=("", ""), repr=False, compare=False)  # response, answer

    @property
    def published(self) -> float:
        """What the published reward function gives the same response; worked out when asked for."""
        return _published(*self._graded)

    def score(
        self,
        preset: str = "tpru",
        *,
        max_length: int | None = None,
        ngram: int | None = None,
        length: int | None = None,
    ) -> float:
        """The reward, less `penalty` where `max_length` or `ngram` is given: in [-1, 1].

        Raises ValueError for an unknown preset, or a penalty's number that makes no sense.

        `tpru` is 7/8 accuracy + 1/8 format: a perfect response earns exactly 1, a right answer in the
        wrong form more than a wrong one in the right form, and every value is a small dyadic fraction,
        so that sums and means of ties are exact in float32 and bfloat16.

        `tpru_partial` has `partial` in place of accuracy and is rounded to the nearest 1/64, because the
        sixths of four images are not dyadic: ties stay exact, a perfect response earns exactly 1, and
        the rounding keeps the order of any two orders of up to 11 images. Of up to 4 images, the best
        wrong order in the right form (55/64) still earns less than a right one in the wrong form
        (56/64); of 5 and more it earns more.

        `paper` is `published`. It is not dyadic: equal scores of a group need not have advantage 0.
        """
        if preset == "tpru":
            earned = 0.875 * self.accuracy + 0.125 * self.format
        elif preset == "tpru_partial":
            earned = _on_grid(0.875 * self.partial + 0.125 * self.format)
        elif preset == "paper":
            earned = self.published
        else:
            raise ValueError(f"preset: found {preset!r}, expected one of {', '.join(PRESETS)}")
        if max_length is None and ngram is None:
            return earned
        return earned - penalty(self._graded[0], max_length=max_length, length=length, ngram=ngram)


def grade(
    response: str, answer: str, *, task: str | None = None, options: Mapping[str, str] | None = None
) -> Grade:
    """Grades `response` against `answer`, an option letter or an order of numbers or letters.

    `options` (letter -> text) tell a text that merely holds a letter from a second answer, and let the
    text of one option stand for its letter. `task` is one of `Task`'s values; only in reordering, or
    where it is not given, are several letters (`CABD`) an order.
    """
    known = tuple(options.items()) if options else ()
    expected, labels = _choice(answer, known), None
    if expected is None and task in (None, "temporal_reordering") and (labels := _read(answer).order):
        expected = " ".join(labels)
    said = {_arranged(t, labels) if labels else _choice(t, known) for t in _answers(response)}
    parsed = said.pop() if len(said) == 1 else None
    accuracy = partial = float(parsed is not None and parsed == expected)
    if parsed is not None and expected is not None and parsed != expected:
        if labels:
            partial = order_credit(parsed.split(), labels)
        elif options:
            partial = _option_credit(options[parsed], options[expected])
    return Grade(accuracy, _format(response), partial, parsed, (response, answer))


def order_credit(predicted: Sequence[str], truth: Sequence[str], measure: str = "kendall") -> float:
    """How much of the order `truth` is kept in `predicted`, in [0, 1]; 1 if and only if they are equal.

    0 where `predicted` does not hold each label of `truth` exactly once. Raises ValueError for an
    unknown measure. Below, n is the number of labels, and chance the mean over all n! orders, in
    brackets its value for n = 4.

    - `exact`: 1 or 0. Chance 1/n! (1/24).
    - `positions`: share of the labels that stand in their place. Chance 1/n (1/4).
    - `kendall`: share of the n(n-1)/2 pairs that stand in the right order, which is (tau + 1)/2.
      Chance 1/2. M. G. Kendall, "A New Measure of Rank Correlation", Biometrika 30 (1938); for orders
      of sentences M. Lapata, Computational Linguistics 32 (2006).
    - `lis`: (L - 1)/(n - 1), L the length of the longest increasing subsequence, the most labels that
      stand in the right order, if with others between them; n - L is Ulam's distance. Chance for n = 4:
      17/36. C. Schensted, "Longest Increasing and Decreasing Subsequences", Canad. J. Math. 13 (1961).
    - `adjacent`: share of the n - 1 neighbours in `truth` that are neighbours, in the same order, in
      `predicted`: those that are no breakpoint. Chance 1/n (1/4). G. Watterson et al., "The Chromosome
      Inversion Problem", J. Theor. Biol. 99 (1982).

    Exchanging two neighbours in `predicted` that stand in the wrong order never lowers `exact`,
    `kendall` (which it raises by one pair) and `lis`; `kendall` also rises when the two are no
    neighbours. `positions` and `adjacent` are not monotone: 4 1 2 3 keeps two pairs of neighbours,
    1 4 2 3 one.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure: found {measure!r}, expected one of {', '.join(MEASURES)}")
    if list(predicted) == list(truth):
        return 1.0
    place = {label: i for i, label in enumerate(truth)}
    n = len(truth)
    if measure == "exact" or len(predicted) != n or len(place) != n or set(predicted) != set(place):
        return 0.0
    ranks = [place[label] for label in predicted]
    if measure == "positions":
        return sum(i == rank for i, rank in enumerate(ranks)) / n
    if measure == "kendall":
        return sum(a < b for i, a in enumerate(ranks) for b in ranks[i + 1 :]) / (n * (n - 1) // 2)
    if measure == "lis":
        return (_longest_increasing(ranks) - 1) / (n - 1)
    return sum(b == a + 1 for a, b in pairwise(ranks)) / (n - 1)


def penalty(
    response: str,
    *,
    max_length: int | None = None,
    buffer: int | None = None,
    length: int | None = None,
    ngram: int | None = None,
) -> float:
    """What to subtract from a score for length and repetition: a multiple of 1/64 in [0, 1].

    Both are off by default (0.0); together they add up to at most 1.

    - Length, with `max_length`: 0 up to `max_length - buffer`, then rising in a straight line to 1 at
      `max_length`, the soft overlong punishment of DAPO (arXiv 2503.14476). `buffer` is a
      fifth of `max_length` where it is not given, DAPO's own share (4,096 of 20,480). `length` is the
      response's in the unit of `max_length`, such as tokens; where it is not given, its characters count.
    - Repetition, with `ngram`: 1 - distinct / all n-grams of `ngram` words between white space, the
      "seq-rep-n" of Welleck et al. (arXiv 1908.04319). Text without white space counts as one word.

    Raises ValueError for a number that makes no sense.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length: found {max_length}, expected 1 or more")
    if ngram is not None and ngram < 1:
        raise ValueError(f"ngram: found {ngram}, expected 1 or more")
    total = 0.0
    if max_length is not None:
        total += _overlong(len(response) if length is None else length, max_length, buffer)
    if ngram is not None:
        total += _repetition(response.split(), ngram)
    return _on_grid(min(1.0, total))


def _overlong(length: int, max_length: int, buffer: int | None) -> float:
    ramp = max_length // 5 if buffer is None else buffer
    if not 0 <= ramp <= max_length:
        raise ValueError(f"buffer: found {buffer}, expected 0 to max_length ({max_length})")
    over = length - (max_length - ramp)
    return float(over > 0) if ramp == 0 else min(1.0, max(0.0, over / ramp))


def _repetition(words: list[str], n: int) -> float:
    total = len(words) - n + 1
    if total < 1:
        return 0.0
    distinct = set(zip(*(words[i : i + total] for i in range(n)), strict=True))
    return 1 - len(distinct) / total


def _on_grid(value: float) -> float:
    return round(value * _GRID) / _GRID


def _longest_increasing(ranks: Sequence[int]) -> int:
    tails: list[int] = []  # the least rank that ends an increasing subsequence of each length
    for rank in ranks:
        at = bisect_left(tails, rank)
        tails[at : at + 1] = [rank]
    return len(tails)


class _Reading(NamedTuple):
    """What a short text says, whatever the options: each reading that is possible."""

    text: str  # without decoration
    keys: frozenset[str] = frozenset()  # what is compared with the text of an option
    letter: str | None = None
    rest: str = ""  # what follows the letter
    others: frozenset[str] = frozenset()  # further letters that stand alone in `rest`
    order: tuple[str, ...] | None = None


def _answers(response: str) -> set[str]:
    """The answers outside of the reasoning; empty when none follows it, or a tag is nested or left open.

    The reasoning may lack its `<think>`, which some chat templates write into the prompt.
    """
    *thoughts, last = response.split("</think>", _MAX_TAGS)
    texts: set[str] = set()
    for i, thought in enumerate(thoughts):
        outside, opened, inside = thought.partition("<think>")
        if (i and not opened) or ("<" in inside and "<think>" in inside):
            return set()
        if opened and outside and not _collect(outside, texts):
            return set()
    stray = "<think>" in last or "</think>" in last
    if stray or "<answer>" not in last or not _collect(last, texts):
        return set()
    return texts


def _collect(part: str, texts: set[str]) -> bool:
    """Adds what the answers in `part` hold to `texts`; False when a tag is nested or left open."""
    head, *blocks = part.split("<answer>", _MAX_TAGS)
    if "</answer>" in head or "<answer>" in (blocks or [""])[-1]:
        return False
    for block in blocks:
        text, closed, after = block.partition("</answer>")
        if not closed or "</answer>" in after:
            return False
        texts.add(text if len(text) <= _MAX_ANSWER else "")  # texts are remembered, and this one may be huge
    return True


def _format(response: str) -> float:
    """1.0 for `<think>...</think>` and `<answer>...</answer>`, once each and nothing else but space."""
    text = response.strip()
    if not text.startswith("<think>") or not text.endswith("</answer>"):
        return 0.0
    reasoning, _, rest = text[len("<think>") : -len("</answer>")].partition("</think>")
    rest = rest.lstrip()
    if not rest.startswith("<answer>"):
        return 0.0
    answer = rest[len("<answer>") :]
    return float(not _has_tag(reasoning) and not _has_tag(answer))


def _has_tag(text: str) -> bool:
    return "<" in text and any(tag in text for tag in _TAGS)  # one character is found ten times as fast


@lru_cache(maxsize=4096)  # a group of responses says few different things, and the options stay the same
def _read(text: str) -> _Reading:
    if len(text) > _MAX_ANSWER:
        return _Reading("")
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    text = _undress(text)
    lead = _LEAD.match(text)
    bare = _undress(text[lead.end() :]) if lead else text
    order = _order(bare)
    match = _CHOICE.fullmatch(bare)
    keys = _keys(text, bare, order)
    if match is None:
        return _Reading(text, keys, order=order)
    letter, rest = match[1].upper(), (match[2] or match[3] or "").strip()
    others = frozenset(map(str.upper, _LONE_LETTER.findall(rest))) - {letter}
    return _Reading(text, keys, letter, rest, others, order)


def _keys(text: str, bare: str, order: tuple[str, ...] | None) -> frozenset[str]:
    """What a text is compared by; empty for "<image>", which names no option."""
    if "<" in text:
        return frozenset()
    keys = {_squash(text), " ".join(order or ())}
    if len(bare) > 1 or not bare.isalpha():  # "Option C" is a letter, not the text "C"
        keys.add(_squash(bare))
    return frozenset(keys - {""})


def _undress(text: str) -> str:
    """Takes off Markdown, quotes, `\\boxed{}` and brackets that enclose the whole answer."""
    text = text.translate(_DECORATION)
    for _ in range(_MAX_LAYERS):
        text = text.strip().strip("'‘’.").strip()  # noqa: RUF001
        if not text.endswith((")", "]", "}")):
            break
        for opening, closing in _LAYERS:
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and _encloses(inner, opening[-1], closing):
                text = inner
                break
        else:
            break
    return text


def _encloses(inner: str, opening: str, closing: str) -> bool:
    """Whether brackets around `inner` belong together: those around `A) (C` do not."""
    return opening in inner.partition(closing)[0] or closing not in inner


def _squash(text: str) -> str:
    return "".join(text.casefold().split()).rstrip(".")


def _order(text: str) -> tuple[str, ...] | None:
    """The labels of an order (`4 2 3 1`, `4231`, `image 4 -> image 2`, `CABD`), or None."""
    labels = _ORDER_WORD.sub(" ", text).translate(_ORDER_SEPARATORS).split()
    joined = "".join(labels)
    if not joined.isascii() or not (joined.isdigit() or joined.isalpha()):
        return None
    if len(labels) == 1:
        labels = list(joined.upper())
    elif joined.isalpha():
        labels = list(joined.upper()) if len(joined) == len(labels) else []
    return tuple(labels) if len(labels) > 1 and len(set(labels)) == len(labels) else None


def _arranged(text: str, labels: Sequence[str]) -> str | None:
    """The order that a text gives; None for other labels, or more or fewer of them."""
    order = _read(text).order
    return " ".join(order) if order and sorted(order) == sorted(labels) else None


@lru_cache(maxsize=4096)
def _choice(text: str, known: tuple[tuple[str, str], ...]) -> str | None:
    """The one option letter that a text names, or None; without options, any letter will do."""
    reading, options = _read(text), dict(known)
    if not options:
        return None if reading.others else reading.letter
    if len(reading.text) == 1 and reading.text.upper() in options:
        return reading.text.upper()
    named = [letter for letter, option in known if reading.keys & _read(option).keys]
    if len(named) == 1:
        return named[0]
    letter = reading.letter
    if letter is None or letter not in options:
        return None
    return letter if not reading.rest or _agrees(reading, letter, options) else None


def _agrees(reading: _Reading, letter: str, options: Mapping[str, str]) -> bool:
    """Whether what follows an option's letter is its text, or at least no other option's."""
    said, own = _read(reading.rest), _read(options[letter])
    if said.keys & own.keys:
        return True
    if any(said.keys & _read(text).keys for text in options.values()):
        return False
    return not (said.order and own.order) and not reading.others & options.keys()


def _option_credit(chosen: str, right: str) -> float:
    """Partial credit where the options are orders; 0 between an order and "None of the choices"."""
    predicted, truth = _read(chosen).order, _read(right).order
    if not predicted or not truth or not _counts_up(truth):
        return 0.0
    return order_credit(predicted, truth)


def _counts_up(labels: Sequence[str]) -> bool:
    """Whether the labels are 1..n or A..; `STOP` and `POTS` are two buttons, not two orders."""
    numbers = [str(i + 1) for i in range(len(labels))]
    return set(labels) in (set(numbers), set(ascii_uppercase[: len(labels)]))


def _published(response: str, answer: str) -> float:
    """The reward of the published code, number for number.

    Source: `examples/reward_function/reward.py` of the TPRU repository (its only version), restated
    without its backtracking expressions and checked against them. In its order: white space around
    every `<`, `>` and `/` goes; format is 0.2 when the whole is `<think>`, anything, `</think><answer>`,
    one or more capitals, `</answer>`; the *first* answer, its quotes taken off, must equal the ground
    truth; 0.9 accuracy + 0.1 format. A perfect response thus earns 0.92.
    """
    if "answer" not in response:
        return 0.0
    text = response
    for sign in "<>/" if text.split(maxsplit=1) != [text] else "":  # without white space, nothing to take off
        first, *rest = text.split(sign)
        if rest:
            text = sign.join([first.rstrip(), *map(str.strip, rest[:-1]), rest[-1].lstrip()])
    head = text.removesuffix("</answer>").rstrip(ascii_uppercase)
    opening, middle = "<think>", "</think><answer>"
    formed = (
        text.endswith("</answer>")
        and len(opening) + len(middle) <= len(head) < len(text) - len("</answer>")
        and head.startswith(opening)
        and head.endswith(middle)
    )
    _, _, rest = text.partition("<answer>")
    first, closed, _ = rest.partition("</answer>")
    accuracy = 1.0 if closed and first.strip().strip("\"'") == answer else 0.0
    return (1 - 0.1) * accuracy + 0.1 * (0.2 if formed else 0.0)
