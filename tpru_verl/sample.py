"""The one data model: what a TPRU row is, and what makes one valid.  Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from tpru_verl.grading import read_answer

NONE_OPTION = "None of the choices provided"
IMAGE_TAG = "<image>"
MAX_IMAGES = 32  # the published rows have at most 7; far more is a broken row, not a long one

_BOLD = r"(?:\*\*|__|[*`])?"
# "A. ", "(A) ", "[A] ", "Option A: ", "- **A.** ", "1. A) ", and Chinese marks. An enumeration comma (U+3001)
# between two letters lists letters ("A, B, C"), not options.
_MARKER = re.compile(
    r"(?<![A-Za-z0-9])(?:[-*+>\u2022]\s+|^[ \t]*\d{1,2}[.)][ \t]+)?"
    + _BOLD
    + r"(?:(?:[Oo]ption|OPTION)\s+|\u9009\u9879\s?)?"
    r"[(\[\uff08\u3010]?" + _BOLD + r"([A-Z\uff21-\uff3a])" + _BOLD + r"\\?"
    r"(?:[.):\]\uff0e\uff09\uff1a\u3011]{1,2}|\u3001(?!\s?[A-Z\uff21-\uff3a](?![A-Za-z])))" + _BOLD,
    re.MULTILINE,
)
_GIVEN_STEP = re.compile(r"step\s?(\d)\s?[:.)]?\s?<image>")
_REORDERING_WORDS = ("reorder", "random order", "correct sequence", "correct order", "shuffled")
_PREVIOUS_WORDS = ("previous", "before step", "precede", "prior to")
_NEXT_WORDS = ("next", "after step", "between step", "follow")


class Task(str, Enum):
    """The three tasks of the paper."""

    TEMPORAL_REORDERING = "temporal_reordering"
    NEXT_FRAME_PREDICTION = "next_frame_prediction"
    PREVIOUS_FRAME_REVIEW = "previous_frame_review"

    @property
    def data_source(self) -> str:
        """The name under which veRL groups validation metrics: one curve for each task."""
        return f"tpru/{self.value}"


@dataclass(frozen=True)
class Sample:
    """One row.

    `problem` holds one `<image>` tag for each of `images` and, where there are options, the options;
    `answer` is an option letter, or an order such as "4 2 3 1" where there are none; `images` are
    encoded files (PNG, JPEG, ...) as they came.
    """

    problem: str
    answer: str
    images: tuple[bytes, ...]
    task: Task
    scene: str
    source_id: str
    row_id: str

    @property
    def options(self) -> dict[str, str]:
        """Letter -> text, as `parse_options` reads them from the problem."""
        return parse_options(self.problem)


def parse_options(problem: str) -> dict[str, str]:
    """Letter -> text of the options that a problem lists: `A. ...`, `(B) ...`, `Option C: ...`, `D\u3001...`.

    Markdown lists and bold marks do not matter. The last run of marks A, B, C, ... counts, because a
    description before it may hold letters, too. An option that is an image has the text "<image>". Empty
    when there are fewer than two.
    """
    return {letter: _one_line(problem[start:end]) for letter, (start, end) in _parsed_options(problem)}


Span = tuple[int, int]


@lru_cache(maxsize=256)  # a row's problem is read by its checks, its task and its grade, one after another
def _parsed_options(problem: str) -> tuple[tuple[str, Span], ...]:
    """Letter and place of each option's text."""
    run: list[re.Match[str]] = []
    best: list[re.Match[str]] = []
    for marker in _MARKER.finditer(problem):
        if _letter(marker) == "A":
            run = [marker]
        elif run and ord(_letter(marker)) == ord("A") + len(run):
            run.append(marker)
        if len(run) > 1:
            best = run
    ends = [*(marker.start() for marker in best[1:]), len(problem)]
    return (
        tuple(
            (_letter(marker), _text_span(problem, marker.end(), end, last=marker is best[-1]))
            for marker, end in zip(best, ends, strict=True)
        )
        if best
        else ()
    )


def _letter(marker: re.Match[str]) -> str:
    letter = marker[1]
    return letter if letter.isascii() else chr(ord(letter) - 0xFEE0)  # "\uff21" is a wide "A"


def _text_span(problem: str, start: int, end: int, *, last: bool) -> Span:
    """Where the text of an option lies between its mark and the next one, or the end of the problem."""
    text = problem[start:end]
    start += len(text) - len(text.lstrip())
    text = text.strip()
    if last:  # what follows the options is no part of the last one
        text = text.split("\n", 1)[0]
        text = next((head for head in (IMAGE_TAG, NONE_OPTION) if text.startswith(head)), text)
    return start, start + len(text.rstrip(" \t\n\r,;\uff1b\uff0c\u3001*`"))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def option_spans(problem: str, options: Mapping[str, str]) -> list[Span]:
    """Where the options' texts stand in the problem, the last time that all are listed; [] where nowhere."""
    parsed = _parsed_options(problem)
    if options and [(letter, _one_line(problem[slice(*span)])) for letter, span in parsed] == [
        *options.items()
    ]:
        return [span for _, span in parsed]
    patterns = [(letter, re.compile(rf"\s*({_words(text)})")) for letter, text in options.items()]
    found: list[Span] = []
    run: list[Span] = []  # of the options that follow one another up to here
    for marker in _MARKER.finditer(problem) if options else ():
        at = run[-1][1] if run else 0
        if run and marker.start() < at:  # a letter inside of an option's text
            continue
        if run and problem[at : marker.start()].strip(" \t\r\n,;*"):
            run = []
        for k in (len(run), 0):
            letter, pattern = patterns[k]
            text = pattern.match(problem, marker.end()) if letter == _letter(marker) else None
            if text:
                run = [*run[:k], text.span(1)]
                break
        else:
            run = []
        if len(run) == len(patterns):
            found, run = run, []
    return found


def _words(text: str) -> str:
    """A pattern for `text`, whatever the white space in it, that does not match the head of a longer one."""
    end = r"(?![A-Za-z0-9])" if text[-1:].isalnum() else ""
    return r"\s+".join(map(re.escape, text.split())) + end


def recognise_task(problem: str) -> Task | None:
    """The task that a problem's text poses, or None when the text does not say.

    Structure first (options that are orders; which steps are given), words only where it is silent.
    """
    text = " ".join(problem.lower().split())
    orders = [o for o in parse_options(problem).values() if o != NONE_OPTION]
    if orders and all(_is_order(o) for o in orders):
        return Task.TEMPORAL_REORDERING
    given = {int(step) for step in _GIVEN_STEP.findall(text)}
    if given:
        return Task.PREVIOUS_FRAME_REVIEW if 1 not in given else Task.NEXT_FRAME_PREDICTION
    found = {
        task
        for task, words in (
            (Task.TEMPORAL_REORDERING, _REORDERING_WORDS),
            (Task.PREVIOUS_FRAME_REVIEW, _PREVIOUS_WORDS),
            (Task.NEXT_FRAME_PREDICTION, _NEXT_WORDS),
        )
        if any(word in text for word in words)
    }
    if Task.TEMPORAL_REORDERING in found:
        return Task.TEMPORAL_REORDERING
    return found.pop() if len(found) == 1 else None


def is_none_option(text: str) -> bool:
    """Whether an option's text says that none of the others is right: "None of the above", NONE_OPTION."""
    return text.casefold().startswith(("none of the ", "none of these"))


def problems_of(problem: object, answer: object, n_images: int) -> list[str]:
    """What is wrong with a row, each as "field: found ..., expected ..."; empty when it is valid.

    Raises nothing, whatever the types: this is where data of others enters.
    """
    found: list[str] = []
    if not isinstance(problem, str) or not problem.strip():
        return [f"problem: found {_short(problem)}, expected text with {IMAGE_TAG} tags"]
    tags = problem.count(IMAGE_TAG)
    if tags != n_images:
        found.append(f"images: found {n_images}, expected {tags}, one for each {IMAGE_TAG} tag in problem")
    elif not 1 <= n_images <= MAX_IMAGES:
        found.append(f"images: found {n_images}, expected 1 to {MAX_IMAGES}")
    try:
        read_answer(answer, parse_options(problem) or None, recognise_task(problem))
    except ValueError as error:
        found.append(f"answer: {error}")
    return found


def _is_order(text: str) -> bool:
    labels = [c for c in text if c not in " ,->"]
    return len(labels) > 1 and sorted(labels) == [str(i + 1) for i in range(len(labels))]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
