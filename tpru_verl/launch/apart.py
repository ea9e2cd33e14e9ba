"""A function that runs in a process of its own: it takes JSON and answers in JSON.

Such a function imports torch, or a user's code. Here that would take seconds of every start, and a broken
module may end its process.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
_MARK = "tpru-answer:"


def ask(function: Callable[[Request], Answer], request: Request, *, seconds: float) -> Answer:
    """What `function`, which a module defines at its top level, returns for `request`.

    Raises:
        ValueError: the ValueError of the function, with its message.
        RuntimeError: the process ended without an answer, or took more than `seconds`; one line.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    command = [sys.executable, "-W", "ignore", "-m", __name__, name]
    given = json.dumps(request)
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"found no answer in {seconds:.0f} s") from None
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(_MARK):
            said = json.loads(line.removeprefix(_MARK))
            if "error" in said:
                raise ValueError(said["error"])
            return said["answer"]
    last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
    raise RuntimeError(f"it ended its process: {last}")


def _main() -> None:
    module, name = sys.argv[1].split(":")
    try:
        said = {"answer": getattr(importlib.import_module(module), name)(json.load(sys.stdin))}
    except ValueError as error:
        said = {"error": str(error)}
    # On a line of its own: what was imported may have left an unfinished one.
    print(f"\n{_MARK}{json.dumps(said, default=str)}")


if __name__ == "__main__":
    _main()
