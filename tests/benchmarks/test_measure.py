"""benchmarks/measure.py: turns, spread, tables, and the memory of a program and its children."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return import_module("measure")


def test_tasks_take_turns_and_warm_up_rounds_are_dropped(measure: ModuleType) -> None:
    order: list[str] = []

    def task(name: str) -> int:
        order.append(name)
        return len(order)

    found = measure.in_turn({"a": lambda: task("a"), "b": lambda: task("b")}, 2, warm_up=1)
    assert order == ["a", "b"] * 3
    assert found == {"a": [3, 5], "b": [4, 6]}


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_a_spread_is_median_lowest_and_highest(measure: ModuleType, values: list[int]) -> None:
    middle, lowest, highest = (float(cell.replace(",", "")) for cell in measure.spread(values, ",.1f"))
    assert (lowest, highest) == (min(values), max(values))
    assert sum(value <= middle for value in values) * 2 >= len(values)
    assert sum(value >= middle for value in values) * 2 >= len(values)


def test_a_table_is_markdown_and_a_bar_in_a_cell_stays_in_the_cell(measure: ModuleType) -> None:
    text = measure.markdown([["", "a|b"], ["x", 1]], "Title")
    assert text == "Title\n\n|  | a\\|b |\n| --- | --- |\n| x | 1 |"


def test_memory_counts_children_too(measure: ModuleType) -> None:
    hold = "held = bytes(range(256)) * 2**20; import time; time.sleep(1)"  # 256 MiB
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    seconds, peak = measure.watched([sys.executable, "-c", code])
    assert seconds > 1
    assert 0.25 <= peak < 0.6


def test_a_program_that_fails_ends_the_benchmark_with_its_error(measure: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"ended with exit code 3\nno such rows"):
        measure.watched(
            [sys.executable, "-c", "import sys; print('no such rows', file=sys.stderr); sys.exit(3)"]
        )
