"""Where a response gives its answer, and whether it has the form that the prompt asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tpru_verl.grading.compare import MAX_ANSWER, announces, read

__all__ = ["announced_first", "answers_of", "boxed_in", "format_of", "untagged_answers"]

_MAX_TAGS = 16  # reasonings or answers in one response; more are no answer, and would not be read in time
_MAX_TAIL = 2048  # characters at the end of an untagged response in which its last lines are looked for
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_ANY_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_VISIBLE = re.compile(r"[^\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_FRAME = re.compile(r"\$\$|\\[\[\]]|`{3}\w*")  # around a formula or a code block
_BOXED = re.compile(r"\\(?:boxed|fbox)\s?\{(?:[^{}]|\{[^{}]*\})*\}")


def answers_of(response: str) -> tuple[set[str], str]:
    """The answers outside of the reasoning, and the text after the last one.

    There are none where a tag is left open, or no answer ends the response. The reasoning may lack its
    `<think>`, which some chat templates write into the prompt, and may name `<think>`. Tags may be written
    in capitals. An answer in an HTML comment does not count.
    """
    found = _answers_of(response)
    if found is None and "<" in response:
        found = _answers_of(_ANY_TAG.sub(lambda tag: tag[0].lower(), response))
    return found or (set(), "")


def _answers_of(response: str) -> tuple[set[str], str] | None:
    *thoughts, last = response.split("</think>", _MAX_TAGS)
    texts: set[str] = set()
    named = 0  # "<think>" inside of the reasoning, each of which may have its own end
    for i, thought in enumerate(thoughts):
        if named:
            named += thought.count("<think>") - 1
            continue
        outside, opened, inside = thought.partition("<think>")
        if (i and not opened) or (opened and outside and _collect(outside, texts) is None):
            return None
        if "<" in inside:
            named = inside.count("<think>")
    if "<answer>" not in last or "<think>" in last or "</think>" in last:
        return None
    after = _collect(last, texts)
    return None if after is None else (texts, after)


def _collect(part: str, texts: set[str]) -> str | None:
    """Adds the answers in `part` to `texts`; gives what follows them, or None when a tag is left open."""
    if "<!--" in part:
        part = _without_comments(part)
    head, *blocks = part.split("<answer>", _MAX_TAGS)
    if "</answer>" in head or "<answer>" in (blocks or [""])[-1]:
        return None
    after = ""
    for block in blocks:
        text, closed, after = block.partition("</answer>")
        if not closed or "</answer>" in after:
            return None
        texts.add(text if len(text) <= MAX_ANSWER else "")  # texts are remembered, and this one may be huge
    return after


def _without_comments(text: str) -> str:
    kept, at = [], 0
    while (opened := text.find("<!--", at)) >= 0:
        kept.append(text[at:opened])
        closed = text.find("-->", opened + 4)
        at = len(text) if closed < 0 else closed + 3
    return "".join([*kept, text[at:]])


def untagged_answers(response: str) -> Iterator[str]:
    """What a response without `<answer>` may mean by its answer: the whole of it, else its last line.

    The reasoning up to `</think>` does not count. The last line counts where it announces an answer ("So,
    the answer is B"), has one in `\\boxed{}`, or is nothing but a letter or an order, and no line shortly
    before it is another one.
    """
    said = response.rpartition("</think>")[2].strip()
    if not said or "<think>" in said:
        return
    yield said if len(said) <= MAX_ANSWER else ""
    lines = _lines(said)
    if not lines or lines == [said]:
        return
    *before, last = lines
    boxes = _BOXED.findall(last)
    if len(boxes) == 1:
        yield boxes[0]
    elif announces(last) or (_is_bare(last) and not any(_answers_otherwise(line, last) for line in before)):
        yield last


def announced_first(response: str) -> tuple[str, str]:
    """The first line of an untagged response, where that alone announces an answer, and what follows it."""
    first, _, after = response.rpartition("</think>")[2].strip().partition("\n")
    rest = [line for line in _lines(after) if line != first.strip()]
    alone = not any(announces(line) or _is_bare(line) or boxed_in(line) for line in rest)
    return (first, after) if len(first) <= MAX_ANSWER and announces(first) and alone else ("", "")


def _lines(said: str) -> list[str]:
    """The last lines, without those that only frame a formula or a code block."""
    lines = (line.strip() for line in said[-_MAX_TAIL:].splitlines())
    return [line for line in lines if line and not _FRAME.fullmatch(line)]


def boxed_in(text: str) -> list[str]:
    """Each `\\boxed{}` or `\\fbox{}` of a text."""
    return _BOXED.findall(text)


def _is_bare(line: str) -> bool:
    reading = read(line)
    return (reading.letter is not None and not reading.rest) or reading.order is not None


def _answers_otherwise(line: str, last: str) -> bool:
    other, own = read(line), read(last)
    return (other.letter is not None and other.letter != own.letter) or (
        other.order is not None and other.order != own.order
    )


def format_of(response: str, *, opened_think: bool = False) -> float:
    """1.0 for `<think>...</think>` and `<answer>...</answer>`, once each and nothing else but space.

    The reasoning must not be empty. `opened_think`: the chat template has written the first
    `<think>` into the prompt, so that the response may begin inside of the reasoning.
    """
    text = response.strip()
    begins = text.startswith("<think>")
    if not (begins or opened_think) or not text.endswith("</answer>"):
        return 0.0
    reasoning, _, rest = text[len("<think>") if begins else 0 : -len("</answer>")].partition("</think>")
    rest = rest.lstrip()
    if not rest.startswith("<answer>"):
        return 0.0
    answer = rest[len("<answer>") :]
    return float(not _has_tag(reasoning) and not _has_tag(answer) and _VISIBLE.search(reasoning) is not None)


def _has_tag(text: str) -> bool:
    return "<" in text and any(tag in text for tag in _TAGS)  # one character is found ten times as fast
