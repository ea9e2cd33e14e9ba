"""The terminal that results are printed to."""

from __future__ import annotations

from rich.console import Console

WIDTH = 140


def results() -> Console:
    """Stdout. A pipe or a file has no width of its own; rich's 80 would cut tables short."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def line_of(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
