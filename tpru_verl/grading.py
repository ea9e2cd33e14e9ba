"""Grades one response against one answer.  Standard library only, linear time, raises on no response.

What counts is the last `<answer>...</answer>` after the reasoning.  The reading is tolerant of how an
answer is written and strict about what it says: two different answers, or a tag left open, are none.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase

PRESETS = ("tpru", "paper")

_MAX_ANSWER = 256  # characters; a longer answer is an essay, not a choice
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_CHOICE = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]+(.*))?", re.DOTALL)
_LONE_LETTER = re.compile(r"(?<![A-Za-z'’])[A-Za-z](?![A-Za-z])")  # noqa: RUF001
_ORDER_SEPARATORS = str.maketrans("", "", " \t\r\n,;->→")
_DECORATION = str.maketrans("", "", '*`$"')


@dataclass(frozen=True)
class Grade:
    """What one response earned: every number lies in [0, 1].

    `parsed` is the answer as read ("C", "4 2 3 1"), None when there is none; `partial` is the share of
    positions that are right where the answer is an order, and the accuracy elsewhere; `published` is
    what the published reward function gives the same response.
    """

    accuracy: float
    format: float
    partial: float
    parsed: str | None
    published: float

    def score(self, preset: str = "tpru") -> float:
        """The reward. Raises ValueError for an unknown preset.

        `tpru` is 7/8 accuracy + 1/8 format: a perfect response earns exactly 1, and every value is a
        small dyadic fraction, so that sums and means of ties are exact in float32 and bfloat16.
        """
        if preset == "tpru":
            return 0.875 * self.accuracy + 0.125 * self.format
        if preset == "paper":
            return self.published
        raise ValueError(f"preset: found {preset!r}, expected one of {', '.join(PRESETS)}")


def grade(
    response: str, answer: str, *, task: str | None = None, options: Mapping[str, str] | None = None
) -> Grade:
    """Grades `response` against `answer`, an option letter or an order of digits or letters.

    `options` (letter -> text) tell a text that merely holds a letter from a second answer, and let the
    text of one option stand for its letter. `task` is one of `Task`'s values; only in reordering, or
    where it is not given, are several letters (`CABD`) an order.
    """
    truth = answer.strip()
    labels = _order(truth) if task in (None, "temporal_reordering") else None
    text = _final_answer(response)
    if labels is None:
        expected = _choice(truth, None) or truth
        parsed = _choice(text, options)
        accuracy = partial = float(parsed is not None and parsed == expected)
    else:
        order = _order(text) or []
        if sorted(order) != sorted(labels):
            order = []  # other labels, or more or fewer of them: no answer to this question
        parsed = " ".join(order) or None
        accuracy = float(order == labels)
        partial = sum(a == b for a, b in zip(order, labels, strict=False)) / len(labels)
    return Grade(accuracy, _format(response), partial, parsed, _published(response, answer))


def _final_answer(response: str) -> str:
    """The text of the last `<answer>` after the reasoning; empty where a tag is missing or left open."""
    _, closed, after = response.rpartition("</think>")
    if "<think>" in (after if closed else response):
        return ""
    if after.count("<answer>") != after.count("</answer>"):
        return ""
    body, _, _ = after.rpartition("</answer>")
    _, opened, text = body.rpartition("<answer>")
    return text if opened and len(text) <= _MAX_ANSWER else ""


def _format(response: str) -> float:
    """1.0 for `<think>...</think>` and `<answer>...</answer>`, once each and nothing else but space."""
    text = response.strip()
    if any(text.count(tag) != 1 for tag in _TAGS):
        return 0.0
    reasoning, _, rest = text.partition("</think>")
    ordered = reasoning.startswith("<think>") and rest.lstrip().startswith("<answer>")
    return float(ordered and rest.endswith("</answer>"))


def _undress(text: str) -> str:
    """Takes off Markdown, quotes, `\\boxed{}` and brackets that enclose the whole answer."""
    text = text.translate(_DECORATION).strip().strip("'").strip()
    for opening, closing in (("\\boxed{", "}"), ("\\text{", "}"), ("(", ")"), ("[", "]")):
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and closing not in inner:
            return _undress(inner) if opening[0] == "\\" else inner.strip()
        if opening == "\\boxed{" and text.startswith(opening) and text.endswith("}}"):
            return _undress(inner)
    return text


def _squash(text: str) -> str:
    return "".join(text.casefold().split()).rstrip(".")


def _choice(text: str, options: Mapping[str, str] | None) -> str | None:
    """The one option letter that a text names, or None."""
    text = _undress(text)
    named = {k for k, v in (options or {}).items() if "<" not in text and _squash(v) == _squash(text)}
    if len(named) == 1:
        return named.pop()
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    letter, rest = match[1].upper(), _squash(match[2] or "")
    if options is not None and letter not in options:
        return None
    if options and rest and rest == _squash(options[letter]):
        return letter
    if options and rest and rest in {_squash(v) for v in options.values()}:
        return None  # one option's letter with another one's text
    others = {c.upper() for c in _LONE_LETTER.findall(match[2] or "")} - {letter}
    return None if others & set(options or ascii_uppercase) else letter


def _order(text: str) -> list[str] | None:
    """The labels of an order (`4 2 3 1`, `4231`, `4 -> 2 -> 3 -> 1`, `CABD`), or None."""
    labels = list(_undress(text).translate(_ORDER_SEPARATORS).rstrip("."))
    alike = all(c in "123456789" for c in labels) or all(c in ascii_uppercase for c in labels)
    return labels if alike and len(labels) > 1 and len(set(labels)) == len(labels) else None


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
    for sign in "<>/":
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
