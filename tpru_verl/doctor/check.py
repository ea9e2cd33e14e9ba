"""A line of the doctor's table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Check:
    """`status` is ok, warn (a run starts, but look) or fail (it does not); `fix` is what to do then."""

    check: str
    status: str
    found: str
    fix: str = ""


def judged(check: str, look: Callable[[], str], fix: str) -> Check:
    """What `look` says, or fail with the one line that it raises.

    Our own errors have the form `field: found X, expected Y; do Z`: then Z is the fix, else `fix`.
    """
    try:
        return Check(check, OK, look())
    except (OSError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        found, _, todo = text.partition("; ")
        return Check(check, FAIL, found, todo or fix)
