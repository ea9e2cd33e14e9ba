"""The tables of the documentation are what the code gives."""

from pathlib import Path

import pytest
from support.pages import CHOICES, OPTIONS, cases, choice

from tpru_verl.eval.item import Item
from tpru_verl.eval.scoring import judge
from tpru_verl.grading import grade
from tpru_verl.sample import parse_options

THOUGHT = "<think>A is too early, B late.</think>"


def table(root: Path) -> list[tuple[str, str, str, str]]:
    """Output, published reward, the letter that we read, our reward: of each line of the table."""
    text = (root / "docs/rewards.md").read_text()
    assert f"`{OPTIONS}`" in text
    lines = [line for line in text.partition("Forty outputs")[2].splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [(output, published, read, score) for output, published, _, read, score in cells]


def test_forty_outputs(root: Path) -> None:
    rows = table(root)
    assert len(rows) == 40
    options = parse_options(OPTIONS)
    for output, published, read, score in rows:
        response = "" if output == "(empty)" else output[1:-1].replace("⏎", "\n")
        if response.startswith("T"):
            response = THOUGHT + response[1:]
        elif response.endswith("</answer>T"):
            response = response[:-1] + THOUGHT
        found = grade(response, "C", task="temporal_reordering", options=options)
        assert (found.parsed or "-") == read, output
        assert found.score("tpru") == float(score), output
        assert found.score("paper") == pytest.approx(float(published)), output


def test_what_we_make_of_the_cases_of_the_evaluation(root: Path) -> None:
    rows = cases(root, CHOICES[0])
    assert len(rows) == 14
    for response, ours, *_ in rows:
        assert (judge(choice(), response).parsed or "-") == ours, response
    orders = cases(root, CHOICES[1])
    assert len(orders) == 6
    for response, ours, _ in orders:
        assert (judge(Item("x", "", "BDAC", ()), response).parsed or "-") == ours, response
