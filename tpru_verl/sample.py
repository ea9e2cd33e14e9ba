"""The one data model: what a TPRU row is, and what makes one valid.  Standard library only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

NONE_OPTION = "None of the choices provided"
IMAGE_TAG = "<image>"
MAX_IMAGES = 32  # the published rows have at most 7; far more is a broken row, not a long one

_MARKER = re.compile(r"(?<![A-Za-z0-9])\(?([A-Z])[.):]")
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
    """Letter -> text of the options that a problem lists as `A. ...`, `B) ...` or `(C) ...`.

    The last run of markers A, B, C, ... counts, because a description before it may hold letters, too.
    An option that is an image has the text "<image>". Empty when there are fewer than two.
    """
    return dict(_parsed_options(problem))


@lru_cache(maxsize=256)  # a row's problem is read by its checks, its task and its grade, one after another
def _parsed_options(problem: str) -> tuple[tuple[str, str], ...]:
    run: list[re.Match[str]] = []
    best: list[re.Match[str]] = []
    for marker in _MARKER.finditer(problem):
        if marker[1] == "A":
            run = [marker]
        elif run and ord(marker[1]) == ord("A") + len(run):
            run.append(marker)
        if len(run) > 1:
            best = run
    options: dict[str, str] = {}
    for i, marker in enumerate(best):
        last = i + 1 == len(best)
        text = problem[marker.end() :].strip() if last else problem[marker.end() : best[i + 1].start()]
        if last:  # what follows the options is no part of the last one
            text = text.split("\n", 1)[0]
            text = next((head for head in (IMAGE_TAG, NONE_OPTION) if text.startswith(head)), text)
        options[marker[1]] = " ".join(text.split()).rstrip(",;")
    return tuple(options.items())


def option_spans(problem: str, options: Mapping[str, str]) -> list[tuple[int, int]]:
    """Where the options' texts stand in the problem, the last time that all are listed; [] where nowhere."""
    pattern = "".join(
        rf"(?<![A-Za-z0-9])\(?{letter}[.):]\s*({_words(text)})[\s,;]*" for letter, text in options.items()
    )
    found = list(re.finditer(pattern, problem)) if options else []
    return [found[-1].span(i + 1) for i in range(len(options))] if found else []


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
    options = parse_options(problem)
    if not isinstance(answer, str) or not answer.strip():
        found.append(f"answer: found {_short(answer)}, expected an option letter or an order")
    elif options and answer.strip() not in options and sorted(answer.strip()) != sorted(options):
        found.append(f"answer: found {_short(answer)}, expected one of {', '.join(options)}")
    elif not options and not _is_order(answer) and not re.fullmatch(r"\s*[A-Z]\s*", answer):
        found.append(f"answer: found {_short(answer)}, expected a letter or an order such as '4 2 3 1'")
    return found


def _is_order(text: str) -> bool:
    labels = [c for c in text if c not in " ,->"]
    return len(labels) > 1 and sorted(labels) == [str(i + 1) for i in range(len(labels))]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
