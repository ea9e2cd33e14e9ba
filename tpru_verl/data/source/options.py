"""Options that stand in columns beside the question: a list, texts by letter, or a column for each letter."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from string import ascii_uppercase
from typing import TypeGuard

from tpru_verl.data.source.cells import is_missing, is_text_or_number
from tpru_verl.sample import parse_options

_LISTS = ("options", "choices", "candidates", "answer_options", "answer_choices")
_ONE = re.compile(r"(?:(?:option|choice)s?[ _-]?)?([a-z])|(?:option|choice)s?[ _-]?(\d\d?)", re.IGNORECASE)
_LONGEST = 2**16  # characters of a list that is written out


@lru_cache(maxsize=256)  # the rows of a source have the same columns
def option_columns(found: tuple[str, ...], used: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that hold options by their names; `used`: those that are read as something else."""
    free = [name for name in found if name not in used]
    lists = [name for name in free if name.casefold() in _LISTS]
    single = [name for name in free if _ONE.fullmatch(name)]
    marks = {_mark(name) for name in single}
    return (*lists, *(single if {"A", "B"} <= marks or {"1", "2"} <= marks else ()))


def options_in(record: Mapping[str, object], columns: Sequence[str]) -> dict[str, str]:
    """Letter -> text of the options in the columns of `option_columns`; {} where none can be read."""
    for name in columns:
        if name.casefold() in _LISTS and (options := _options_of(record.get(name))):
            return options
    single = {_mark(name): record.get(name) for name in columns if name.casefold() not in _LISTS}
    by_letter = {mark: cell for mark, cell in single.items() if not mark.isdigit()}
    numbered = [single[mark] for mark in sorted(single.keys() - by_letter.keys(), key=int)]
    return _filled(sorted(by_letter.items())) or _filled(zip(ascii_uppercase, numbered, strict=False))


def filled_columns(record: Mapping[str, object], columns: Sequence[str]) -> tuple[str, ...]:
    """Those of the columns that hold something in this record, whether or not it can be read."""
    return tuple(name for name in columns if not _is_empty(record.get(name)))


def listed(question: str, options: Mapping[str, str]) -> str:
    """The question with its options, one a line."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items())])


def table_options(record: Mapping[str, object]) -> dict[str, str]:
    """Texts of the columns A to Z of VLMEvalKit's table, as far as they are filled.

    "nan" is a missing option: VLMEvalKit reads its tables so. "None" is an option. Numbers are written out.
    """
    return _filled((letter, record.get(letter)) for letter in ascii_uppercase)


def is_missing_option(text: str) -> bool:
    """Whether a cell for an option holds none: pandas writes "nan" for an empty cell."""
    return text in ("", "nan", "NaN")


def read_written(text: str) -> object:
    """A list or an object that is written in JSON or Python; None for other text."""
    if not text.lstrip().startswith(("[", "{")) or len(text) > _LONGEST:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, (list, tuple, dict)) else None
    return None


def text_of(cell: object) -> str:
    return str(cell).strip() if is_text_or_number(cell) or isinstance(cell, bool) else ""


def _mark(name: str) -> str:
    """The letter or the number of a column for one option."""
    found = _ONE.fullmatch(name)
    return (found[1] or found[2]).upper().lstrip("0") or "0" if found else ""


def _filled(cells: Iterable[tuple[str, object]]) -> dict[str, str]:
    texts = ((letter, text_of(cell)) for letter, cell in cells)
    return {letter: text for letter, text in texts if not is_missing_option(text)}


def _options_of(cell: object) -> dict[str, str]:
    """Of a list of texts, with or without letters, of texts by letter, of ARC's {text, label}, or written."""
    if isinstance(cell, str):
        written = read_written(cell)
        return parse_options(cell) if written is None else _options_of(written)
    if isinstance(cell, Mapping):
        texts, letters = cell.get("text"), cell.get("label")
        pairs = zip(letters, texts, strict=False) if _is_list(letters) and _is_list(texts) else cell.items()
        by_letter = {str(letter).strip().upper(): text for letter, text in pairs}
        return _filled(sorted(by_letter.items())) if by_letter.keys() <= {*ascii_uppercase} else {}
    if not _is_list(cell) or len(cell) > len(ascii_uppercase) or not all(map(_is_option, cell)):
        return {}
    lettered = parse_options("\n".join(map(text_of, cell)))
    return lettered if len(lettered) == len(cell) else _filled(zip(ascii_uppercase, cell, strict=False))


def _is_empty(cell: object) -> bool:
    """Whether a cell holds nothing, or only missing options: as a list, by letter, or written."""
    if isinstance(cell, str) and (written := read_written(cell)) is not None:
        cell = written
    parts = cell.values() if isinstance(cell, Mapping) else cell if _is_list(cell) else [cell]
    return all(
        is_missing_option(part.strip()) if isinstance(part, str) else part in ([], ()) or is_missing(part)
        for part in parts
    )


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, (list, tuple))


def _is_option(value: object) -> bool:
    return value is None or is_text_or_number(value) or isinstance(value, bool)
