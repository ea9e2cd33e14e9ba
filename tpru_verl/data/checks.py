"""The one judge of a row: what makes it unusable, and what a person should know about it.

Trainer, doctor, reward trial and `tpru data` ask `problems_of_row`, so that they say the same words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from tpru_verl.data.images import note_of, problem_of_header
from tpru_verl.data.source.cells import is_missing, names_of, short
from tpru_verl.data.source.forms import Source
from tpru_verl.data.source.named import numbers_of
from tpru_verl.data.source.rows import Row, is_text_or_number, read_rows
from tpru_verl.sample import IMAGE_TAG, Task, parse_options, problems_of
from tpru_verl.terminal import counted

LISTED = 10  # unusable rows in a message; the others are counted
_ALL_TASKS = ", ".join(task.value for task in Task)
_NAMES = ("scene", "source_id", "row_id", "id", "data_source", "task")
# A tokenizer reads these as turns and pictures, not as text. A model's own come with `reserved`.
_CONTROL = re.compile(
    r"<\|[\w/]{1,40}\|>|<\uff5c[^<>\uff5c]{1,40}\uff5c>|<(?:start|end)_of_(?:turn|image)>|<image_soft_token>|<video>|<audio>"
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def problems_of_row(row: Row, *, deep: bool = False, reserved: Collection[str] = ()) -> Iterator[str]:
    """What makes a row unusable, as "field: found ..., expected ...", with the fields' names in the source.

    `deep` decodes the images in full; `reserved` holds the tokens that a model's tokenizer reads as more than
    text (`reserved_tokens`). Raises nothing.
    """
    if row.unread:
        yield f"{row.form.problem}: {row.unread}"
        return
    yield from _problems_of_text(row, reserved)
    if not isinstance(row.cells, list):
        yield f"{row.form.images}: {_no_images(row)}, expected a list of images"
        return
    unanswered = not row.form.answered and is_missing(row.answer)
    for text in problems_of(row.problem, row.answer, len(row.cells)):
        if not (unanswered and text.startswith("answer: ")):
            yield _renamed(row, text)
    if not unanswered and (problem := _kind_of_answer(row, len(row.cells))):
        yield f"{row.form.name_of('answer')}: {problem}"
    try:
        _ = row.task
    except ValueError:
        yield f"task: found {short(row.value('task'))}, expected one of {_ALL_TASKS}"
    options = parse_options(row.problem) if isinstance(row.problem, str) else {}
    texts = Counter(text.casefold() for text in options.values() if text != IMAGE_TAG)
    for text, times in texts.items():
        if times > 1:
            found = f"the option {short(text)} {times} times"
            yield f"{row.form.problem}: found {found}, expected distinct options"
    yield from _problems_of_images(row, deep=deep)


def notes_of_row(row: Row, digests: Sequence[bytes]) -> Iterator[str]:
    """What a user should know about a sound row; `digests`: one of each image."""
    if row.task is None:
        expected = f"expected a question that tells it, or a column `task` with one of {_ALL_TASKS}"
        yield f"{row.form.problem}: found a text that does not tell which task it is, {expected}"
    elif problem := _images_of_task(row.task, parse_options(str(row.problem)), len(digests)):
        yield f"{row.form.images}: {problem}"
    if _names_no_option(row):
        found = f"found the letter {row.answer} and a text without options"
        expected = (
            "expected options in the text, such as 'A. ...'; where a picture shows them, nothing is wrong"
        )
        yield f"{row.form.name_of('answer')}: {found}, {expected}"
    for i, header in enumerate(row.headers):
        if not isinstance(header, str) and (note := note_of(header)):
            yield f"{row.form.images}[{i}]: {note}"
    if repeated := len(digests) - len({*digests}):
        repeats = "1 image that repeats" if repeated == 1 else f"{repeated} images that repeat"
        found = f"found {repeats} another image of the row"
        yield f"{row.form.images}: {found}, expected images that all differ"


def judged_rows(source: Source, *, reserved: Collection[str] = ()) -> Iterator[tuple[Row, list[str]]]:
    """Every row of a source, with what makes it unusable: nothing where it is sound.

    Images are read by their headers. Raises ValueError where a file itself is broken.
    """
    for unit in source.units:
        for row in read_rows(unit, source.form(unit)):
            yield row, list(problems_of_row(row, reserved=reserved))


def unusable_rows(places: Sequence[tuple[str, str]], total: int) -> str:
    """A message for rows that cannot be used, each as (place, reason): how many, and the first of them."""
    lines = [f"{len(places)} of {total} rows are broken (rows count from 0):"]
    lines += [f"  {place}: {reason}" for place, reason in places[:LISTED]]
    if len(places) > LISTED:
        lines.append(f"  and {len(places) - LISTED} more")
    return "\n".join(lines)


def reserved_tokens(tokenizer: object) -> frozenset[str]:
    """The tokens that a tokenizer of transformers reads as more than text, such as `<|im_end|>`."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    # Others, such as `<think>`, are plain words to a prompt.
    return frozenset(str(token) for token in added if token.special) - {IMAGE_TAG}


def _problems_of_text(row: Row, reserved: Collection[str]) -> Iterator[str]:
    texts = {row.form.problem: row.problem, row.form.name_of("answer"): row.answer}
    for name in _NAMES:
        value = texts[name] = row.value(name)
        if value is not None and not is_text_or_number(value):
            yield f"{name}: found {short(value)}, expected text"
    for name, text in texts.items():
        if isinstance(text, str) and not text.isascii() and (found := _SURROGATE.search(text)):
            yield f"{name}: found {found[0]!r} at {found.start()}, expected text that UTF-8 can hold"
    if not isinstance(row.problem, str):
        return
    found = {token for token in reserved if token in row.problem} | {*_CONTROL.findall(row.problem)}
    # The longest alone: a token may be a part of another one.
    named = sorted(token for token in found if not any(token != other and token in other for other in found))
    if named:
        found = f"{names_of(named, 5)}, which a model reads as more than text"
        yield f"{row.form.problem}: found {found}, expected plain text"


def _kind_of_answer(row: Row, images: int) -> str | None:
    """Whether the answer is of the kind that the user named, or "found ..., expected ..."."""
    if row.form.answers == "letters" and not parse_options(str(row.problem)):
        return "found no options in the row, expected lines such as 'A. ...', or columns A, B, ..."
    if row.beside and _names_no_option(row):
        lacking = f"found {short(row.answer)} and a text without options"
        return f"{lacking}, expected those of {names_of(row.beside)} in {row.form.problem}, such as 'A. ...'"
    if row.form.answers in ("orders", "ranks"):
        numbers = numbers_of(row.answer)
        if numbers is None or len(numbers) != images:
            return f"found {short(row.answer)}, expected the numbers 1 to {images}, one for each image"
    return None


def _names_no_option(row: Row) -> bool:
    """Whether the answer is a letter, and the text lists no options."""
    letter = isinstance(row.answer, str) and len(row.answer) == 1 and row.answer.isalpha()
    return letter and not parse_options(str(row.problem))


def _no_images(row: Row) -> str:
    if row.cells is None:
        return f"found none in a row with the fields {names_of(row.fields)}"
    return f"found {type(row.cells).__name__}"


def _renamed(row: Row, text: str) -> str:
    """A message of `problems_of` with the name that the field has in the source."""
    name, _, rest = text.partition(": ")
    return f"{row.form.name_of(name)}: {rest}"


def _problems_of_images(row: Row, *, deep: bool) -> Iterator[str]:
    try:
        images, headers = row.views, row.headers
    except ValueError as error:
        yield str(error)
        return
    for i, (data, header) in enumerate(zip(images, headers, strict=True)):
        problem = header if isinstance(header, str) else problem_of_header(header, data, deep=deep)
        if problem:
            yield f"{row.form.images}[{i}]: {problem}"


def _images_of_task(task: Task, options: dict[str, str], count: int) -> str | None:
    """Whether the number of images can be right for the task, or "found ..."."""
    if task is not Task.TEMPORAL_REORDERING:
        return None
    labels = {len([c for c in text if c.isdigit()]) for text in options.values()} - {0}
    if len(labels) == 1 and count not in labels:
        found = f"found {counted(count, 'image')} and options that put {labels.pop()} images in order"
        return f"{found}, expected as many images as the options name"
    return None
