"""The blocks of code in README, docs/ and the other pages, command by command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer.main

from tpru_verl.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "benchmarks")
    for page in (ROOT / folder).glob("*.md")
)
# Said in a comment of a block whose commands no test runs: `# needs a GPU; not run by the tests`.
NOT_RUN = re.compile(r"^# .*\S; not run by the tests$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    page: str
    line: int  # of its first line in the page
    language: str  # of the fence; "" and "bash" are a shell's
    text: str

    @property
    def place(self) -> str:
        return f"{self.page} line {self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in ("", "bash", "sh")

    @property
    def is_marked(self) -> bool:
        return bool(NOT_RUN.search(self.text))

    @property
    def commands(self) -> list[str]:
        """One a line, without comments, variables before it, and where its output goes."""
        lines = self.text.replace("\\\n", " ").splitlines()
        bare = [re.sub(r"(^|\s+)#(?: .*|$)|\s*&$|\s> \S+$", "", line) for line in lines]
        parts = [part for line in bare for part in re.split(r"\s&&\s", line)]
        return [re.sub(r"^(?:[A-Z_]+=\S*\s+)+", "", part.strip()) for part in parts if part.strip()]


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    found: list[Block] = []
    for fence in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        inner = re.sub(rf"^{fence[1]}", "", fence[3], flags=re.MULTILINE)
        found.append(Block(page, text.count("\n", 0, fence.start()) + 2, fence[2], inner))
    return found


def words(command: str) -> list[str]:
    """The words of a command; `.venv/bin/tpru` is `tpru`."""
    first, *others = shlex.split(command)
    return [first.removeprefix(".venv/bin/"), *others]


def all_commands() -> Iterator[tuple[Block, list[str]]]:
    for page in PAGES:
        for block in blocks(page):
            if block.is_shell and not is_table(block):
                for command in block.commands:
                    yield block, words(command)


def is_table(block: Block) -> bool:
    """A file that is shown, not a command: each line has commas and no space before the first."""
    return all(re.match(r"\w+,", line) for line in block.text.splitlines())


@cache
def commands() -> Any:
    """`tpru` and all its commands, which parse their arguments and then do nothing."""

    def idle(command: Any) -> None:
        for one in getattr(command, "commands", {}).values():
            idle(one)
        if not hasattr(command, "commands"):
            command.callback = lambda **_: None

    tpru = typer.main.get_command(app)
    idle(tpru)
    return tpru


def recipe_of(arguments: list[str]) -> tuple[str, list[str]] | None:
    """Recipe and overrides of a command that composes one: `tpru train`, `tpru doctor`, `main_ppo`."""
    of_option = {after for word, after in pairwise(arguments) if word == "--set"}
    given = [word for word in arguments if re.match(r"[+~]*[a-zA-Z_][\w.]*=", word)]
    given = [word for word in given if word not in of_option]
    if arguments[:2] == ["tpru", "train"] and "--resume" not in arguments:
        return arguments[2], given
    for option in ("--recipe", "--config-name"):
        if option in arguments and arguments[0] in ("tpru", "python"):
            return arguments[arguments.index(option) + 1], given
    return None
