"""Quotes of csv and tsv tables: whether one that was left open took the rows after it into its cell."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence

HOW = 'a cell that begins with " ends with one, and a quote inside it is written twice'

_FILE = re.compile(r"\S*(\.[A-Za-z]\w{1,4})")
_HASH = re.compile(r"[0-9A-Fa-f-]{8,}")


def holds_rows(lines: Sequence[str], delimiter: str, columns: int) -> bool:
    """Whether `lines`, which a quote joins to one row, are rows of their own.

    Each of them then has a cell for each of the `columns`, and they look alike: a number, an id or the name
    of a file stands below another one. Lines of a text with as many commas do not look so. The column of
    the quote itself is not compared. A row whose other columns hold text alone is taken as it is.
    """
    own = next(csv.reader([lines[0]], delimiter=delimiter))
    at = len(own) - 1  # the column whose quote is open at the end of the line
    rows = [[*own[:at], *own[at].split(delimiter)], *csv.reader(lines[1:], delimiter=delimiter)]
    if any(len(row) != columns for row in rows):
        return False
    shapes = [{_shape(row[i]) for row in rows} for i in range(columns) if i != at]
    if any(len(found - {""}) > 1 for found in shapes):
        return False
    alike = sum(len(found) == 1 and found != {""} for found in shapes)
    return alike > 1 or (alike == 1 and all(len(found) == 1 for found in shapes))


def _shape(cell: str) -> str:
    """What cells of one column share where they are numbers, ids or names of files; "" for a text."""
    text = cell.strip()
    if suffix := _FILE.fullmatch(text):
        return suffix[1].lower()
    if _HASH.fullmatch(text):
        return "hash"
    shape = re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", text))
    return shape if "0" in shape and not ("a" in shape and re.search(r"\s", shape)) else ""


def kept(lines: Iterator[str], into: list[str]) -> Iterator[str]:
    """The lines, those that are not blank also added to `into`."""
    for line in lines:
        if line.strip() or into:
            into.append(line)
        yield line
