"""What a response says: its answers, and the letter or order that each names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import ascii_uppercase
from typing import NamedTuple

_MAX_ANSWER = 256  # characters; a longer answer is an essay, not a choice


_MAX_TAGS = 16  # reasonings or answers in one response; more are no answer, and would not be read in time


_MAX_LAYERS = 8  # of brackets and Markdown around an answer


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


class _Reading(NamedTuple):
    """What a short text says, whatever the options: each reading that is possible."""

    text: str  # without decoration
    keys: frozenset[str] = frozenset()  # what is compared with the text of an option
    letter: str | None = None
    rest: str = ""  # what follows the letter
    others: frozenset[str] = frozenset()  # further letters that stand alone in `rest`
    order: tuple[str, ...] | None = None


def answers_of(response: str) -> set[str]:
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


def format_of(response: str) -> float:
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
def read(text: str) -> _Reading:
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


def arranged(text: str, labels: Sequence[str]) -> str | None:
    """The order that a text gives; None for other labels, or more or fewer of them."""
    order = read(text).order
    return " ".join(order) if order and sorted(order) == sorted(labels) else None


@lru_cache(maxsize=4096)
def choice_of(text: str, known: tuple[tuple[str, str], ...]) -> str | None:
    """The one option letter that a text names, or None; without options, any letter will do."""
    reading, options = read(text), dict(known)
    if not options:
        return None if reading.others else reading.letter
    if len(reading.text) == 1 and reading.text.upper() in options:
        return reading.text.upper()
    named = [letter for letter, option in known if reading.keys & read(option).keys]
    if len(named) == 1:
        return named[0]
    letter = reading.letter
    if letter is None or letter not in options:
        return None
    return letter if not reading.rest or _agrees(reading, letter, options) else None


def _agrees(reading: _Reading, letter: str, options: Mapping[str, str]) -> bool:
    """Whether what follows an option's letter is its text, or at least no other option's."""
    said, own = read(reading.rest), read(options[letter])
    if said.keys & own.keys:
        return True
    if any(said.keys & read(text).keys for text in options.values()):
        return False
    return not (said.order and own.order) and not reading.others & options.keys()


def counts_up(labels: Sequence[str]) -> bool:
    """Whether the labels are 1..n or A..; `STOP` and `POTS` are two buttons, not two orders."""
    numbers = [str(i + 1) for i in range(len(labels))]
    return set(labels) in (set(numbers), set(ascii_uppercase[: len(labels)]))
