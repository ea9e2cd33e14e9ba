"""What each recipe and each overlay is for, in a line: the first sentence of its own comment."""

from __future__ import annotations

import re
from pathlib import Path

from rich.table import Table

from tpru_verl import trainers
from tpru_verl.recipes import EASYR1, VERL, names, overlays


def table(trainer: str) -> Table:
    """The recipes of a trainer, and the overlays for them where it has some."""
    shown = Table(title=f"Recipes for {trainer}: tpru train RECIPE")
    shown.add_column("recipe", no_wrap=True)
    shown.add_column("what it trains")
    for name in names(trainer):
        shown.add_row(name, first_sentence((VERL if trainer == trainers.VERL else EASYR1) / f"{name}.yaml"))
    if trainer == trainers.VERL:
        shown.add_section()
        for name in overlays.names():
            shown.add_row(f"+tpru={name}", first_sentence(overlays.FOLDER / f"{name}.yaml"))
    return shown


def first_sentence(file: Path) -> str:
    """Of the comment at the head of a recipe."""
    words: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if text.startswith("@package"):  # Hydra's
            continue
        if not line.startswith("#") or not text or line.startswith("#  "):  # a command is indented
            break
        words += text.split()
    return _END.split(" ".join(words))[0].rstrip(".:")


_END = re.compile(r"(?<!\bal)(?<!\bDr)\. (?=[A-Z])")  # "Yao et al. 2025" and "Dr. GRPO" go on
