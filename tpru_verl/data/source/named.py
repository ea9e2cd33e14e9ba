"""Rows of a table whose columns were named: pictures in one column or several, a text, and an answer.

A text without `<image>` tags gets them here, and an order gets the question itself. So the answer's kind has
to be known (`ANSWER_KINDS`): `[3, 1, 4, 2]` as an order shows picture 3 first, as ranks it puts picture 1
third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tpru_verl.data.source.cells import LONGEST_NAME, cells_of_text, is_missing, short
from tpru_verl.data.source.forms import OPTIONAL, Form
from tpru_verl.data.source.names import COMMON, in_order, is_system_file
from tpru_verl.data.source.options import listed
from tpru_verl.grading.orders import counts_up, order_of
from tpru_verl.sample import IMAGE_TAG, parse_options

_SAY = "--answers orders (which picture is first, second, ...) or --answers ranks (the place of each picture)"

_BESIDE = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".md", ".yaml", ".yml")  # texts about pictures


def with_given_names(record: Mapping[str, object]) -> dict[str, object]:
    """The record, with `Id` and `Scene` under the names that rows have for them."""
    small = {name.casefold(): value for name, value in record.items()}
    return {**{name: small[name] for name in OPTIONAL if name in small}, **record}


def cells_of(record: Mapping[str, object], form: Form, folder: Path | None) -> list[object]:
    """The images of a record, column by column; empty cells hold none.

    A name of a picture may also lie in a folder that has the row's id. A name of a folder stands for its
    pictures, in the order of the numbers in their names; folders in it do not count. Raises ValueError for
    names without such an order, and for a folder that holds other files.
    """
    cells: list[object] = []
    own = "" if is_missing(record.get("id")) else str(record["id"])
    for column in form.columns:
        value = record.get(column)
        value = str(value) if type(value) is int else value  # a folder named by a number
        held = cells_of_text(value) if isinstance(value, str) else value
        for cell in held if isinstance(held, list) else [held]:
            if isinstance(cell, str) and folder is not None:
                cells += _files_of(folder, own, cell)
            elif not is_missing(cell):
                cells.append(cell)
    return cells


def _files_of(root: Path, own: str, name: str) -> list[object]:
    """Paths below `root` that a cell stands for: its own, one in the row's folder, or those of a folder."""
    inside = f"{own}/{name}"
    try:
        if len(name) > LONGEST_NAME or (root / name).is_file():
            return [name]
        if own and (root / inside).is_file():
            return [inside]
        if not name or not (root / name).is_dir() or root.resolve() not in (root / name).resolve().parents:
            return [name]  # `image_bytes` refuses a path out of `root`: nothing out there is listed
        inner = (path for path in (root / name).iterdir() if not path.is_dir())  # thumbnails, masks, ...
        found = [path.name for path in inner if not is_system_file(path.name)]
    except (OSError, ValueError):  # a name that is none is told by who opens it
        return [name]
    files = [file for file in found if not file.lower().endswith(_BESIDE)]
    if others := sorted(file for file in files if not file.lower().endswith(COMMON)):
        other = f"found {short(f'{name}/{others[0]}')} in a folder of pictures"
        raise ValueError(f"{other}, expected {', '.join(COMMON)}; convert or move it, or name each picture")
    return [f"{name}/{file}" for file in in_order(files)]


def question_and_answer(
    place: str, record: Mapping[str, object], form: Form, options: Mapping[str, str], images: int
) -> tuple[object, object]:
    """The problem with its tags, and the answer as the grader reads it; `options`: of columns.

    Raises ValueError, in one line that begins with `place`, where the answer may be of two kinds.
    """
    text, answer = record.get(form.problem), record.get(form.answer) if form.answer else None
    if isinstance(answer, (list, tuple)):
        answer = ", ".join(map(str, answer))
    if not isinstance(text, str):
        return text, answer
    whole = text if parse_options(text) else listed(text, options)
    posed = whole if IMAGE_TAG in text else IMAGE_TAG * images + whole
    if form.answers == "letters" or parse_options(whole):
        return posed, answer
    numbers = numbers_of(answer)
    if form.answers is None:
        if IMAGE_TAG in text or (numbers is None and not is_missing(answer)):
            return posed, answer
        if numbers is None or numbers != ranks_of(numbers):
            found = "no answer" if numbers is None else f"{form.answer} {short(answer)}"
            raise ValueError(f"{place}: found {found} and no options; say with {_SAY} what is asked")
    problem = text if IMAGE_TAG in text else order_question(text, images)
    return problem, as_order(answer, form.answers or "orders", images)


def as_order(answer: object, kind: str | None, images: int) -> object:
    """An answer of the kind `orders` or `ranks` as the order of 1..`images`; any other as it came."""
    numbers = numbers_of(answer) if kind in ("orders", "ranks") else None
    if numbers is None or len(numbers) != images:
        return answer
    return " ".join(map(str, ranks_of(numbers) if kind == "ranks" else numbers))


def order_question(text: str, images: int) -> str:
    """A problem that asks for the order of `images` pictures, after `text`, which may be empty."""
    said = text.strip()
    end = "" if not said or said[-1] in ".!?:;\u3002\uff01\uff1f" else "."
    tags = "\n".join(f"Image {i + 1}: {IMAGE_TAG}" for i in range(images))
    asked = f"Below are {images} images in random order, labelled 1-{images}. What is the correct sequence?"
    return f"{said}{end} {asked}\n{tags}".lstrip()


def numbers_of(answer: object) -> list[int] | None:
    """The numbers 1..n in an answer's order, those of 0..n-1 raised by one; None for any other answer."""
    labels = order_of(answer) if isinstance(answer, str) else None
    if labels is None or not counts_up(labels) or not labels[0].isdigit():
        return None
    start = min(map(int, labels))
    return [int(label) + 1 - start for label in labels]


def ranks_of(order: Sequence[int]) -> list[int]:
    """The place of each picture, for an order that names them from the first to the last; both of 1..n.

    The function is its own inverse: for the places of pictures it gives their order.
    """
    places = [0] * len(order)
    for place, picture in enumerate(order):
        places[picture - 1] = place + 1
    return places
