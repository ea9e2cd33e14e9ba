"""`--decide score` beside greedy answers of 16 tokens, in one engine.

    python benchmarks/deciding.py --rows 40 --turns 5

The rows are reordering rows of the demo, four pictures each: with five options, and without options, so that
24 orders are scored. Greedy answers have exactly 16 tokens, whatever the model would write. The kinds take
turns, so that other work on the machine slows all of them. Each turn has rows of its own, unknown to caches.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
import psutil

from tpru_verl.demo.scenes import make_rows
from tpru_verl.eval.decide import GENERATE, SCORE, candidates_of
from tpru_verl.eval.engines.base import Request, Sampling
from tpru_verl.eval.engines.local import Local
from tpru_verl.eval.item import Item
from tpru_verl.sample import Task

CHECKPOINT = Path(__file__).parents[1] / "tpru_verl/demo/checkpoint"
TOKENS = 16


class Greedy(Local):
    """Answers of exactly TOKENS tokens."""

    def _params(self, request: Request) -> Any:
        params = super()._params(request)
        params.ignore_eos = True
        return params


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--pixels", type=int, default=3136)
    parser.add_argument("--model", default=str(CHECKPOINT))
    arguments = parser.parse_args()
    found = compared(arguments.model, arguments.rows, arguments.turns, arguments.pixels)
    title = f"{arguments.rows} rows of 4 pictures of {arguments.pixels:,} pixels, {arguments.turns} turns"
    rows = [["", "median", *measure.SPREAD]]
    rows += ([name, *measure.spread(values, ".4g")] for name, values in found.items())
    print(measure.markdown(rows, title))


def compared(model: str, rows: int, turns: int, pixels: int) -> dict[str, list[float]]:
    """Of each turn: milliseconds a row of each kind, and their ratios to greedy answers."""
    engine = Greedy(model, Sampling(max_tokens=TOKENS), min_pixels=pixels, max_pixels=pixels)
    found: dict[str, list[float]] = {}
    here = psutil.Process()
    for turn in range(turns + 1):
        spent: dict[int, float] = {}
        worked: dict[int, float] = {}
        for k, (decide, count) in enumerate(((GENERATE, 0), (SCORE, 5), (SCORE, 24))):
            requests = requests_of(rows, 10 * turn + k, decide, options=count != 24)
            engine.start(requests)
            began, before = time.perf_counter(), measure.cpu_seconds(here)
            replies = [reply for _, reply in engine.answer(requests)]
            spent[count] = time.perf_counter() - began
            worked[count] = measure.cpu_seconds(here) - before
            assert not [reply.error for reply in replies if reply.error]
        if not turn:  # the first warms up
            continue
        for count, name in ((0, "greedy, 16 tokens"), (5, "score, 5 options"), (24, "score, 24 orders")):
            found.setdefault(f"{name}, ms a row", []).append(1000 * spent[count] / rows)
            if count:
                found.setdefault(f"{name}, times greedy", []).append(spent[count] / spent[0])
                found.setdefault(f"{name}, times its CPU seconds", []).append(worked[count] / worked[0])
    engine.close()
    return found


def requests_of(count: int, seed: int, decide: str, *, options: bool) -> list[Request]:
    """Reordering rows of the demo; without options they ask for the order itself."""
    made = (row for row in make_rows(3 * count, seed=20_000 + seed) if row.task is Task.TEMPORAL_REORDERING)
    found = []
    for i, row in enumerate(made):
        listed = row.options
        item = Item(f"{seed}-{i}", row.problem, row.answer, row.images, listed, task=row.task.value)
        if not options:
            question = row.problem.partition(" Options:")[0]
            item = replace(item, problem=question, answer=" ".join(listed["A"]), options={})
        candidates = () if decide == GENERATE else candidates_of(item)
        found.append(Request(f"{decide}{seed}-{i}", item, item.problem, decide, candidates, "<answer>"))
    return found[:count]


if __name__ == "__main__":
    main()
