"""`tpru doctor`: would a run start here? One line a question, and a fix for each that says no.

`machine` looks at what is installed, `recipe` at a run; what imports torch runs in a process of its own
(`probe`, `prompts`). Nothing is changed, and no Ray is started.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tpru_verl.doctor.check import FAIL, OK, WARN, Check
from tpru_verl.doctor.machine import machine_lines
from tpru_verl.doctor.recipe import composed, recipe_lines
from tpru_verl.launch import needs
from tpru_verl.launch.plan import Plan
from tpru_verl.terminal import messages

__all__ = ["Check", "examine", "table", "verdict"]

_STYLE = {OK: "green", WARN: "yellow", FAIL: "bold red"}


def examine(recipe: str | None, overrides: Sequence[str], gpu_memory: float = 0) -> list[Check]:
    """All lines: of the machine, and with a recipe those of the run that it would start.

    `gpu_memory`: GiB of each GPU in the estimate of memory; 0 stands for the GPUs of this machine.
    """
    with messages.status("looking at this machine and its packages ..."):
        plan = None if recipe is None else composed(recipe, overrides)
        lines, seen = machine_lines(
            needs_gpu=recipe is not None and recipe != "tpru_tiny_cpu",
            joins=needs.joins_a_cluster(plan.settings.config if isinstance(plan, Plan) else {}),
        )
    if isinstance(plan, Check):
        return [*lines, plan]
    if recipe is not None and plan is not None:
        with messages.status("looking at the model, the rows and the reward of the run ..."):
            lines += recipe_lines(plan, recipe, overrides, seen, gpu_memory)
    return lines


def table(lines: Sequence[Check]) -> Table:
    """For people; `--json` has the same."""
    made = Table(show_lines=False)
    for column in ("", "check", "found", "to do"):
        made.add_column(column, overflow="fold")
    for line in lines:
        # Texts are no markup for the command's console.
        made.add_row(Text(line.status, style=_STYLE[line.status]), line.check, line.found, line.fix)
    return made


def verdict(lines: Sequence[Check]) -> str:
    """One sentence; raises nothing."""
    failed = [line.check for line in lines if line.status == FAIL]
    warned = sum(line.status == WARN for line in lines)
    if failed:
        return f"a run would not start: {', '.join(failed)}"
    return f"a run would start ({len(lines)} checks, {warned} warnings)"
