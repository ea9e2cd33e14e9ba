"""One question of a benchmark, in the form that every engine, harness and page takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase

import xxhash

from tpru_verl.data.source.rows import is_missing_option
from tpru_verl.sample import IMAGE_TAG, option_spans

_NUMBERED = re.compile(r"<image[ _]?(\d+)>")


@dataclass(frozen=True)
class Item:
    """A question: `problem` is all its text with one `<image>` tag for each of `images`, options included.

    `options` (letter -> text) are those that `problem` lists. `answer` is one of their letters, or an order
    such as "BDAC" where there are none or they label the pictures. `accepted` are texts that may be answered
    where nothing is listed. `images` are encoded files as they came. Results are grouped by `task` and
    `scene`. Rows of one `source` are not independent. `broken` says why the row cannot be asked; it then
    counts as failed.
    """

    id: str
    problem: str
    answer: str
    images: tuple[bytes, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    accepted: tuple[str, ...] = ()
    task: str = ""
    scene: str = ""
    source: str = ""
    broken: str | None = None
    rotation: int = 0

    @property
    def digest(self) -> str:
        """Fingerprint of all that is asked and expected: equal rows, equal digests."""
        state = xxhash.xxh3_128()
        for part in (
            self.problem.encode("utf-8", "surrogatepass"),
            self.answer.encode("utf-8", "surrogatepass"),
            *self.images,
        ):
            state.update(len(part).to_bytes(8, "little") + part)
        return state.hexdigest()


def listed(texts: Sequence[str]) -> dict[str, str]:
    """Options by letter."""
    return dict(zip(ascii_uppercase, texts, strict=False))


def posed(
    question: str, options: Mapping[str, str], images: Sequence[bytes]
) -> tuple[str, tuple[bytes, ...], dict[str, str]]:
    """Question and options as one problem, its images, and the options as listed; a missing one is left out.

    Raises as `placed`.
    """
    options = {letter: text for letter, text in options.items() if not is_missing_option(text)}
    problem, ordered = placed(compose(question, options), images)
    return problem, ordered, {letter: _NUMBERED.sub(IMAGE_TAG, text) for letter, text in options.items()}


def compose(question: str, options: Mapping[str, str]) -> str:
    """Question and options as one text, an option a line."""
    return "\n".join([question.strip(), *(f"{letter}. {text}" for letter, text in options.items())])


def placed(problem: str, images: Sequence[bytes]) -> tuple[str, tuple[bytes, ...]]:
    """The problem with plain tags, and the images in the order of those tags.

    `<image 2>` stands for the second image, as often as it is written; images that the text does not place
    come first. Raises ValueError where tags and images do not agree.
    """
    if numbers := [int(number) for number in _NUMBERED.findall(problem)]:
        if max(numbers) > len(images) or not min(numbers):
            raise ValueError(f"images: found {len(images)}, expected {max(numbers)} for the tags of the text")
        rest = [image for i, image in enumerate(images, start=1) if i not in numbers]
        text = IMAGE_TAG * len(rest) + _NUMBERED.sub(IMAGE_TAG, problem)
        return text, (*rest, *(images[number - 1] for number in numbers))
    tags = problem.count(IMAGE_TAG)
    if tags == 0:
        return IMAGE_TAG * len(images) + ("\n" if images else "") + problem, tuple(images)
    if tags != len(images):
        raise ValueError(f"images: found {len(images)}, expected {tags}, one for each {IMAGE_TAG} tag")
    return problem, tuple(images)


def rotations(item: Item) -> list[Item]:
    """The item with its options at each place in turn, itself first; it alone where no letter is right."""
    places = len(item.options) if item.answer in item.options else 1
    return [rotated(item, shift) for shift in range(places)]


def rotated(item: Item, shift: int) -> Item:
    """The options moved on by `shift` places, with their images; the letters stay where they are.

    Raises ValueError where the options are not found in the problem.
    """
    letters = list(item.options)
    if not shift or len(letters) < 2:
        return item
    spans = option_spans(item.problem, item.options)
    if not spans:
        raise ValueError(f"{item.id}: options: found none in the problem that can be moved")
    texts = [item.problem[start:end] for start, end in spans]
    pictures = [item.images[slice(*_tags(item.problem, start, end))] for start, end in spans]
    order = [(i - shift) % len(letters) for i in range(len(letters))]
    problem, images, at = "", [*item.images[: _tags(item.problem, 0, spans[0][0])[1]]], 0
    for (start, end), origin in zip(spans, order, strict=True):
        images += item.images[slice(*_tags(item.problem, at, start))] if at else []
        problem += item.problem[at:start] + texts[origin]
        images += pictures[origin]
        at = end
    images += item.images[_tags(item.problem, at, len(item.problem))[0] :]
    return replace(
        item,
        problem=problem + item.problem[at:],
        options={letter: item.options[letters[i]] for letter, i in zip(letters, order, strict=True)},
        answer=letters[(letters.index(item.answer) + shift) % len(letters)],
        images=tuple(images),
        rotation=shift,
    )


def _tags(text: str, start: int, end: int) -> tuple[int, int]:
    """Numbers of the first image tag in text[start:end] and of the first one after it."""
    first = text.count(IMAGE_TAG, 0, start)
    return first, first + text.count(IMAGE_TAG, start, end)
