"""`tpru doctor`: would a run start here? One line a question, and a fix for each that says no.

`machine` looks at what is installed, `recipe` at a run; what imports torch runs in a process of its own
(`probe`, `prompts`). Nothing is changed, and no Ray is started.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import TextWrapper

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


def table(lines: Sequence[Check], width: int) -> Text:
    """For people; `--json` has the same. Lines break at spaces alone, so that keys can be copied."""
    names = max((len(line.check) for line in lines), default=0)
    wrapper = TextWrapper(max(20, width - names - 8), break_long_words=False, break_on_hyphens=False)
    made = Text()
    for line in lines:
        made.append(f"{line.status:4}", style=_STYLE[line.status])
        todo = "" if line.status == OK or not line.fix else "to do: "
        rows = [row for text in (line.found, todo + line.fix) for row in wrapper.wrap(text)]
        made.append(f"  {line.check:{names}}  " + f"\n{'':{names + 8}}".join(rows) + "\n")
    return made


def verdict(lines: Sequence[Check]) -> str:
    """One sentence; raises nothing."""
    failed = [line.check for line in lines if line.status == FAIL]
    warned = sum(line.status == WARN for line in lines)
    if failed:
        return f"a run would not start: {', '.join(failed)}"
    return f"a run would start ({len(lines)} checks, {warned} warnings)"
