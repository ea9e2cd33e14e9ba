"""What a person reads in a terminal: tables, progress, messages, and text of others made harmless."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from tpru_verl.extras import install_command

if TYPE_CHECKING:
    from rich.progress import Progress

WIDTH = 140
# What a terminal obeys or hides instead of showing it: control characters (C0 but for line feed and tab, DEL,
# C1), marks that turn the direction of text, separators of lines, and lone surrogates, which no encoding has.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""`text` with an escape such as `\x1b` for each character that a terminal would obey or hide."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


class VisibleConsole(Console):
    """Prints text of others as `visible` shows it, in tables, messages and progress alike.

    A bracket is a bracket: an id such as `[/x]` is no markup.
    """

    def __init__(self, **more) -> None:
        super().__init__(markup=False, **more)

    def render_str(self, text: str, **more) -> Text:
        return super().render_str(visible(text), **more)  # before widths are measured

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


messages = VisibleConsole(stderr=True)  # stdout is for results


def results() -> Console:
    """Stdout. A pipe or a file has no width of its own, and rich's 80 would cut tables short."""
    console = VisibleConsole()
    return console if console.is_terminal else VisibleConsole(width=WIDTH)


def progress_bar() -> Progress:
    """A bar on stderr that counts, with the time taken and left; nothing where stderr is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Bar(*columns, console=messages, transient=True, disable=not sys.stderr.isatty())


def counted(number: int, noun: str) -> str:
    """Such as `1 row` or `1,200 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def percent(share: float | None) -> str:
    """A share in [0, 1] with one decimal; "-" for None, such as a share of no rows."""
    return "-" if share is None else f"{100 * share:.1f} %"


class OptionError(ValueError):
    """A wrong value of an option, or options that do not go together: `tpru` ends with the code 2."""


def text_of(error: BaseException) -> str:
    """What an exception says; its type's name where it says nothing."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error).strip() or type(error).__name__


def line_of(error: BaseException) -> str:
    """The first line of what an exception says."""
    return text_of(error).splitlines()[0]


@contextmanager
def options_checked() -> Iterator[None]:
    """Where the block finds a wrong option, say so in its line; exit code 2, as for one that is unknown."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise OptionError(line_of(error)) from error


def needs(extra: str, package: str, what: str) -> ValueError:
    """The error for `what` where `package`, which `extra` brings, is not installed."""
    return ValueError(f"{what} needs {package}: run {install_command(extra)}")
