"""Runs `tpru` as a user would, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tpru_verl import cli

Tpru = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tpru(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tpru:
    """Runs `tpru data ...` in this process; returns exit code, stdout, last line of stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tpru", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        code = stop.value.code
        # `sys.exit(text)` prints the text and exits with 1; pytest keeps the text.
        return (1, out, code) if isinstance(code, str) else (int(code or 0), out, err)

    return run


@pytest.fixture
def tpru_eval(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[object, str, str]]:
    """Exit code (or message), standard output and standard error of `tpru eval ARGS`."""

    def call(*args: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["tpru", "eval", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capfd.readouterr()
        return caught.value.code, out, " ".join(err.split())

    return call
