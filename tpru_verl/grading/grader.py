"""Grade: what a response earns against the right answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from reprlib import repr as shortened

from tpru_verl.grading.compare import MAX_ANSWER, choice_of, named_order, read
from tpru_verl.grading.normalise import plain, undress
from tpru_verl.grading.orders import counts_up, order_credit
from tpru_verl.grading.penalties import on_grid, penalty
from tpru_verl.grading.published import published_reward
from tpru_verl.grading.response import (
    announced_first,
    answers_of,
    boxed_in,
    format_of,
    untagged_answers,
)

__all__ = ["PRESETS", "Grade", "grade", "read_answer"]

PRESETS = ("tpru", "tpru_partial", "paper")

_MAX_AFTER = 1024  # characters right after an answer, and at the end, in which it may be taken back
_REORDERING = "temporal_reordering"
_TAKEN_BACK = re.compile(
    r"^\W*(?:or|no(?=\s*(?:$|[,.;:!\u2013\u2014-])|\s+wait)|nope|wait|sorry|oops|correction|scratch\s+that)\b"
    r"|\b(?:that|this|it|which|answer)(?:\s+(?:is|was)|'s)\s+(?:wrong|incorrect|not\s+(?:right|correct|true))\b"
    r"|\bmistake\b|\bi\s+was\s+wrong\b|不对|错了",
    re.IGNORECASE,
)
_NAMED_AFTER = re.compile(
    r"(?i:\b(?:it|answer|option|choice|one)(?:\s(?:is|should\sbe|must\sbe)|'s|:)"
    r"|\bi\s(?:choose|pick|mean|meant)|\b(?:final|reconsider(?:ing)?|correction|edit):"
    r"|\b(?:instead|rather|actually|second\sthoughts?|changed?\s(?:it\s)?to)\b,?|答案[是为:]?|选|应该是)\s?(?i:the\s|option\s)?[*(\[]{0,3}"
    r"([A-Z]|\d(?:[\s,>-]{0,4}\d)+)(?![\w'])"
)
_PREFERRED = re.compile(
    r"\b([A-Z])\s(?:is|fits|seems|looks|works|(?:would|must)\sbe)\s(?:(?:the|even|much|a\s(?:bit|little))\s)?"
    r"(?:better|best|correct|right)(?:\s(?:answer|choice|option|one|fit))?(?=\s*(?:$|[.,;!]))"
)

Options = tuple[tuple[str, str], ...]


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
        """What the published reward function gives the same response; computed when asked for."""
        return published_reward(*self._graded)

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
            earned = on_grid(0.875 * self.partial + 0.125 * self.format)
        elif preset == "paper":
            earned = self.published
        else:
            raise ValueError(f"preset: found {preset!r}, expected one of {', '.join(PRESETS)}")
        if max_length is None and ngram is None:
            return earned
        return earned - penalty(self._graded[0], max_length=max_length, length=length, ngram=ngram)


def grade(
    response: str,
    answer: str,
    *,
    task: str | None = None,
    options: Mapping[str, str] | None = None,
    opened_think: bool = False,
    untagged: bool = False,
) -> Grade:
    """Grades `response` against `answer`, an option letter or an order of numbers or letters.

    `options` (letter -> text) tell a text that merely holds a letter from a second answer, and let the
    text of one option stand for its letter. `task` is one of `Task`'s values; only in reordering, or
    where it is not given, are several letters (`CABD`) an order.

    `opened_think`: the chat template ends the prompt with `<think>`, so that a response begins inside of the
    reasoning: one that does not end it gives no answer. `untagged`: a response without `<answer>` is read,
    too (`untagged_answers`, `announced_first`). A response of any content gets a grade; an answer that cannot
    be read (`read_answer`) makes every response wrong.
    """
    known = tuple(options.items()) if options else ()
    expected, labels = _truth(answer, known, task)
    inside = opened_think and not response.lstrip().startswith("<think>")
    parsed = _parsed(f"<think>{response}" if inside else response, known, labels, untagged)
    accuracy = partial = float(parsed is not None and parsed == expected)
    if parsed is not None and expected is not None and parsed != expected:
        if labels:
            partial = order_credit(parsed.split(), labels)
        elif options:
            partial = _option_credit(options[parsed], options[expected])
    return Grade(
        accuracy, format_of(response, opened_think=opened_think), partial, parsed, (response, answer)
    )


def read_answer(answer: object, options: Mapping[str, str] | None = None, task: str | None = None) -> str:
    """The right answer of a row as the grader reads it: "C", or "4 2 3 1".

    It is read by the rules for a response, and needs no tags: `<answer> B </answer>`, `Answer: B`,
    `B. the red cup`, the text of an option, `[4, 2, 3, 1]`.

    Raises ValueError, "found ..., expected ...", for an answer that no response can match: no text, a letter
    or a text that is no option, several answers, or an order of other labels than 1..n, 0..n-1 or A..
    """
    known = tuple(options.items()) if options else ()
    if isinstance(answer, str):
        expected, labels = _truth(answer, known, task)
        if expected and (not labels or (counts_up(labels) and set(labels) == set(options or labels))):
            return expected
    if not isinstance(answer, str) or not answer.strip():
        expected = "an option letter or an order"
    elif options:
        expected = f"one of {', '.join(options)}"
    else:
        expected = "a letter" + (" or an order such as '4 2 3 1'" if task in (None, _REORDERING) else "")
    raise ValueError(f"found {shortened(answer)}, expected {expected}")


@lru_cache(maxsize=4096)
def _truth(answer: str, known: Options, task: str | None) -> tuple[str | None, tuple[str, ...] | None]:
    """The right answer, and its labels where it is an order; None where it cannot be read."""
    texts = _candidates(answer)
    for text in texts:
        if letter := choice_of(text, known):
            return letter, None
    if task in (None, _REORDERING):
        for text in texts:
            if labels := read(text).order:
                return " ".join(labels), labels
    return None, None


def _candidates(answer: str) -> list[str]:
    """The texts, best first, that may be the right answer of a row."""
    texts, _ = answers_of(answer)
    return list(texts) if len(texts) == 1 else [] if texts else list(untagged_answers(answer))


def _parsed(response: str, known: Options, labels: tuple[str, ...] | None, untagged: bool) -> str | None:
    """The one answer of a response, or None."""
    texts, after = answers_of(response)
    if texts:
        said = {named_order(text, labels) if labels else choice_of(text, known) for text in texts}
        parsed = said.pop() if len(said) == 1 else None
        return parsed if parsed is None or not after or _kept(parsed, after, known, labels) else None
    said = response.rpartition("</think>")[2]
    if not untagged or "<answer>" in said or "</answer>" in said:
        return None
    for text in untagged_answers(response):
        if parsed := _named(text, known, labels):
            return parsed
    first, after = announced_first(response)
    parsed = _named(first, known, labels)
    return parsed if parsed and _kept(parsed, after, known, labels) else None


def _named(text: str, known: Options, labels: tuple[str, ...] | None) -> str | None:
    return named_order(text, labels) if labels else choice_of(text, known)


def _kept(parsed: str, after: str, known: Options, labels: tuple[str, ...] | None) -> bool:
    """Whether the text after an answer takes nothing back and names no other answer."""
    if after.isspace():
        return True
    if len(after) > 2 * _MAX_AFTER:
        after = f"{after[:_MAX_AFTER]}\n{after[-_MAX_AFTER:]}"
    if _TAKEN_BACK.search(after):
        return False
    named = [match[1] for match in (*_NAMED_AFTER.finditer(after), *_PREFERRED.finditer(after))]
    named += boxed_in(after)
    if len(after) <= MAX_ANSWER and not undress(plain(after))[:1].islower():
        named.append(after)  # "<answer>A</answer> **B**", "\u2234 B"
    others = {_named(text, known, labels) for text in named}
    return others <= {None, parsed}


def _option_credit(chosen: str, right: str) -> float:
    """Partial credit where the options are orders; 0 between an order and "None of the choices"."""
    predicted, truth = read(chosen).order, read(right).order
    if not predicted or not truth or not counts_up(truth):
        return 0.0
    return order_credit(predicted, truth)
