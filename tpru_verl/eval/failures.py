"""Rows without a response: how many, whether the data or a request is the cause, and the first of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from tpru_verl.eval.item import Item
from tpru_verl.eval.results import RowResult

INCOMPLETE = 3  # exit code; `tpru build` has the same one for a source that it could not read wholly


class Failures(TypedDict):
    """Rows that failed for one cause; `first` has the id and the reason of the first of them."""

    rows: int
    first: str


def failures_of(items: Sequence[Item], results: Sequence[RowResult]) -> dict[str, Failures]:
    """Rows without a response by cause: `data` if the row is broken (its answer, too), else `requests`."""
    found: dict[str, Failures] = {}
    for item, result in zip(items, results, strict=True):
        if result["failed"] is not None:
            cause = "data" if item.broken else "requests"
            one = found.setdefault(cause, Failures(rows=0, first=f"row {item.id}: {result['failed']}"))
            one["rows"] += 1
    return found


def lines_of(failures: Mapping[str, Failures]) -> list[str]:
    """Each cause as a line: "6 requests failed, the first: ..."."""
    words = {
        "requests": ("request failed", "requests failed"),
        "data": ("row of the data is broken", "rows of the data are broken"),
    }
    return [
        f"{one['rows']:,} {words[cause][one['rows'] != 1]}, the first: {one['first']}"
        for cause, one in failures.items()
    ]


def lines_of_benchmark(title: str, rows: int, failures: Mapping[str, Failures]) -> list[str]:
    """What a user must know before they read the accuracy of a benchmark; [] where no row failed."""
    failed = sum(one["rows"] for one in failures.values())
    if not failed:
        return []
    counted = f"{failed:,} of {rows:,} rows have no response and count as wrong"
    measured = "" if failed < rows else ": the accuracy of 0 measures nothing"
    return [f"{title}: {counted}{measured}", *(f"  {line}" for line in lines_of(failures))]
