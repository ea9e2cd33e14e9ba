"""What an error says, in one line."""

from __future__ import annotations


def line_of(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
