"""Text of others on a terminal: shown, never obeyed."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from tpru_verl import cli
from tpru_verl.extras import install_command
from tpru_verl.terminal import VisibleConsole, line_of, needs, percent, text_of, visible

HOSTILE = "\x1b]0;owned\x07 \x9b31m \u202egnp.exe\u2069 \r\x08 \ud800"


@given(st.text())
def test_what_is_shown_holds_no_character_that_a_terminal_obeys(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if c not in "\n\t" and (ord(c) < 32 or 127 <= ord(c) < 160)]
    assert not set(shown) & set(
        "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
    shown.encode()
    assert visible(shown) == shown


def test_escapes_are_those_of_python_and_the_rest_stays() -> None:
    assert visible("\x1b[2J") == r"\x1b[2J"
    assert visible("a\u202eb\ud83d") == r"a\u202eb\ud83d"
    assert visible("Schritt 1: Öl 倒入锅中 👍\n\tזה") == "Schritt 1: Öl 倒入锅中 👍\n\tזה"


@pytest.mark.parametrize("cell", [HOSTILE, Text(HOSTILE)])
def test_tables_and_messages_are_shown_in_this_way(cell: str | Text) -> None:
    file = io.StringIO()
    console = VisibleConsole(file=file, width=100)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(cell)
    console.print(table, cell)
    written = file.getvalue()
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r", "\ud800"} & set(written)
    assert written.count(r"\x1b") >= 4


def test_colours_of_our_own_are_kept() -> None:
    file = io.StringIO()
    VisibleConsole(file=file, force_terminal=True, color_system="standard").print("x", style="red")
    assert "\x1b[31mx" in file.getvalue()


def test_an_error_is_shown_in_this_way_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(sys, "argv", ["tpru", "data", "validate", f"{tmp_path}/\x1b[2J.parquet"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert "\x1b" not in str(stop.value.code)
    assert r"\x1b[2J.parquet" in str(stop.value.code)


def test_errors_of_the_system_begin_with_the_file() -> None:
    assert text_of(OSError(2, "No such file or directory", "x.json")) == "x.json: No such file or directory"
    assert text_of(ValueError("a\nb")) == "a\nb"
    assert line_of(ValueError("a\nb")) == "a"
    assert text_of(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_missing_package_is_named_with_the_way_to_get_it() -> None:
    said = str(needs("build", "imagehash", "--against"))
    assert said.startswith("--against needs imagehash: ")
    assert said.endswith(f": run {install_command('build')}")


def test_percent() -> None:
    assert [percent(share) for share in (0, 0.12345, 1, None)] == ["0.0 %", "12.3 %", "100.0 %", "-"]
