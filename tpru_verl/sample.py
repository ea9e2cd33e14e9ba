"""The one data model: what a TPRU row is, and what makes one valid.  Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import pairwise
from typing import cast
from unicodedata import normalize

from tpru_verl.grading import read_answer

NONE_OPTION = "None of the choices provided"
IMAGE_TAG = "<image>"
MAX_IMAGES = 32  # the published rows have at most 7; far more is a broken row, not a long one

_HTML = r"</?(?:b|i|u|p|br|em|strong|code|span|li|ul|ol|td|tr)\s?/?>"
_BOLD = rf"(?:\*\*|__|[*`]|{_HTML})?"
_NOUN = r"(?:(?i:option|choice|answer)\s+|[\u9009\u9078][\u9879\u9805]\s?)"
_LETTER = rf"{_BOLD}([A-Z\uff21-\uff3a]){_BOLD}"
# "A. ", "(A) ", "[A] ", "Option A: ", "- **A.** ", "1. A) ", "A : ", and Chinese marks. An enumeration comma
# (U+3001) between two letters lists letters ("A, B, C"), not options.
_MARK = (
    r"(?<![A-Za-z0-9])(?:[-*+>\u2022][^\S\r\n]+|^[ \t]*\d{1,2}[.)][ \t]+)?"
    rf"{_BOLD}{_NOUN}?[(\[\uff08\u3010\uff3b\u3014\u300c]?{_LETTER}\\?"
    r"(?:[.):\]\uff0e\uff09\uff1a\u3011\uff3d\u3015\u300d]{1,2}|[ \xa0]:(?=\s)"
    rf"|\u3001(?!\s?[A-Z\uff21-\uff3a](?![A-Za-z]))){_BOLD}"
)
# Only at the start of a line: "A - ", "| A | ", "**A** ", "A; ", "<A> ", "$A$. ", an "A" before a tab or
# a Chinese mark, and "Option A" on a line of its own.
_MARK_OF_LINE = (
    rf"^[ \t|>#*-]*(?:{_BOLD}{_NOUN}?{_LETTER}"
    r"(?:[ \t]+(?:[-\u2013\u2014]|[-=]+>)[ \t]+|[ \t]*[|\uff5c\u2192][ \t]*"
    r"|(?:(?<=\*\*|__|b>)|[;/>])[ \t]+(?=\S)"
    r"|(?:[ ]*[\t\u3000][ \t\u3000]*(?=\S)|[\u3002\u00b7\u30fb\uff0c\uff1b])"
    r"(?![A-Z\uff21-\uff3a](?![A-Za-z])))"
    rf"|{_BOLD}{_NOUN}{_LETTER}[ \t]*\r?\n|(?:<{_LETTER}>|\${_LETTER}\$[.):]))"
)
_CIRCLED = r"([\u24b6-\u24e9])[.):]?"
_MARKER = re.compile(f"{_MARK}|{_MARK_OF_LINE}|{_CIRCLED}", re.MULTILINE)
_SMALL_MARK = re.compile(r"^[ \t]*[-*(\[]?[ \t]?[a-z](?=[.)\]:]{1,2}\s)", re.MULTILINE)
_EDGE = re.compile(rf"(?:\s|{_HTML}|[|\u200b\ufeff])*")
_NO_TEXT = re.compile(r"[\s,;/|\"'.(\[]*(?:or|and|\u6216|\u548c)?[\s,\"'(\[]*")
_ENDS = " \t\n\r,;\uff1b\uff0c\u3001|\u200b\ufeff"
_EMPHASISED = re.compile(r"([*`]{1,3})((?:(?!\1).)+)\1", re.DOTALL)
_TAG_AT_END = re.compile(_HTML + "$")
_GIVEN_STEP = re.compile(r"step\s?(\d{1,2})\s?[:.)]?\s?<image>")
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

    Lists and bold marks of Markdown or HTML do not matter, nor does a word before each mark ("Image A: ").
    The last run of marks A, B, C, ... counts, because a description before it may hold letters, too; letters
    inside of lines that begin with marks do not. An option that is an image has the text "<image>". Empty
    when there are fewer than two.
    """
    return {letter: _one_line(problem[start:end]) for letter, (start, end) in _parsed_options(problem)}


Span = tuple[int, int]
Run = list[re.Match[str]]


@lru_cache(maxsize=256)  # a row's problem is read by its checks, its task and its grade, one after another
def _parsed_options(problem: str) -> tuple[tuple[str, Span], ...]:
    """Letter and place of each option's text."""
    run, leads = _run_and_leads(problem)
    if not run:  # "a) ", which counts where there are no capitals; the letters keep their places
        run, leads = _run_and_leads(_SMALL_MARK.sub(lambda mark: mark[0].upper(), problem))
    # "Image A: ", "### A. ": what stands before each mark on its line belongs to the mark.
    alike = len({re.sub(r"\d", "", leads.get(marker, "\n")) for marker in run}) == 1
    starts = [marker.start() - (len(leads.get(marker, "")) if alike else 0) for marker in run]
    return tuple(
        (_letter(marker), _text_span(problem, marker.end(), end, last=marker is run[-1]))
        for marker, end in zip(run, [*starts[1:], len(problem)], strict=bool(run))
    )


def _run_and_leads(problem: str) -> tuple[Run, dict[re.Match[str], str]]:
    markers = [*_MARKER.finditer(problem)]
    leads = _leads(problem, markers)
    firsts = [marker for marker in markers if marker in leads]
    runs = _runs(firsts, gaps=len(firsts) == len(markers)), _runs(markers, gaps=False)
    return _chosen(problem, *runs), leads


def _leads(problem: str, markers: Run) -> dict[re.Match[str], str]:
    """The text before each mark that is the first one on its line."""
    leads: dict[re.Match[str], str] = {}
    before = 0
    for marker in markers:
        line = problem.rfind("\n", before, marker.start()) + 1
        if line or not leads:
            leads[marker] = problem[line : marker.start()]
        before = marker.start()
    return leads


def _runs(markers: Run, *, gaps: bool) -> list[Run]:
    """Marks A, B, C, ... that follow one another, two or more; with `gaps` some letters may be missing."""
    runs: list[Run] = [[]]
    for marker in markers:
        step = ord(_letter(marker)) - (ord(_letter(runs[-1][-1])) if runs[-1] else 0)
        if _letter(marker) == "A":
            runs.append([marker])
        elif runs[-1] and (step == 1 or (gaps and step > 1)):
            runs[-1].append(marker)
    return [run for run in runs if len(run) > 1]


def _chosen(problem: str, on_lines: list[Run], anywhere: list[Run]) -> Run:
    """The last run. Letters within the lines of a longer run, or named after it, are no marks."""
    listed, last = (_last_with_texts(problem, runs) for runs in (on_lines, anywhere))
    if listed and (len(last) < len(listed) or last[0].start() <= listed[-1].start()):
        return listed
    return last


def _last_with_texts(problem: str, runs: list[Run]) -> Run:
    """The last run that does more than to list letters, as "(A), (B), or (C)" does; else the last one."""
    for run in reversed(runs):
        if not all(_NO_TEXT.fullmatch(problem, a.end(), b.start()) for a, b in pairwise(run)):
            return run
    return runs[-1] if runs else []


def without_option_marks(text: str) -> str:
    """`text` with the bare letter of each mark that `parse_options` would read: "A. cut" becomes "A  cut"."""
    return _MARKER.sub(lambda marker: f"{marker[marker.lastindex or 1]} ", text)


def _letter(marker: re.Match[str]) -> str:
    letter = marker[marker.lastindex or 1]
    return letter if letter.isascii() else normalize("NFKC", letter).upper()  # a wide or a circled "A"


def _text_span(problem: str, start: int, end: int, *, last: bool) -> Span:
    """Where the text of an option lies between its mark and the next one, or the end of the problem."""
    start = cast("re.Match[str]", _EDGE.match(problem, start, end)).end()
    text = problem[start:end].rstrip()
    if last:  # what follows the options is no part of the last one
        text = text.split("\n", 1)[0]
        text = next((head for head in (IMAGE_TAG, NONE_OPTION) if text.startswith(head)), text)
    text = text.rstrip(_ENDS)
    if whole := _EMPHASISED.fullmatch(text):
        start, text = start + whole.start(2), whole[2]
    text = text.rstrip(_ENDS + "*`")  # of "**A. x**"
    for _ in range(4):  # "</b></li>"
        if tag := _TAG_AT_END.search(text, max(0, len(text) - 12)):
            text = text[: tag.start()].rstrip(_ENDS + "*`")
    return start, start + len(text)


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
    options = parse_options(problem).values()
    orders = [o for o in options if o != NONE_OPTION]
    if orders and all(_is_order(o) for o in orders):
        return Task.TEMPORAL_REORDERING
    given = {int(step) for step in _GIVEN_STEP.findall(text)}
    missing = {*range(1, max(given, default=1))} - given
    # All steps from 1 on may be given to be put in order: without options, or where a word says so.
    asks_order = any(word in text for word in _REORDERING_WORDS)
    if missing or (given and (IMAGE_TAG in options or (options and not asks_order))):
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
