"""Tables of docs/, read back as data."""

from __future__ import annotations

from pathlib import Path

from tpru_verl.eval.item import Item
from tpru_verl.sample import parse_options

OPTIONS = "A. 1 3 4 2  B. 2 1 3 4  C. 4 2 3 1  D. 3 4 1 2  E. None of the choices provided"
CHOICES = ("The options of each row are", "Orders, where BDAC is right")


def cases(root: Path, title: str) -> list[list[str]]:
    """Cells of the table after a sentence of docs/evaluation.md, responses as they were."""
    text = (root / "docs/evaluation.md").read_text().partition(title)[2]
    lines = text.partition("\n\n|")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [[response.strip("`").replace("⏎", "\n"), *others] for response, *others in cells]


def choice() -> Item:
    return Item("x", "", "B", (), parse_options(OPTIONS))
