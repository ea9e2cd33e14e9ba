"""`tpru eval` beside vLLM's own batch API, on the same prompts in the same engine.

    python benchmarks/evaluation.py --rows 100 --turns 8

`tpru eval` starts from encoded files: it decodes and resizes them, asks the model, and grades the answers.
`LLM.generate` gets pictures that were decoded and resized before its clock starts. The two take turns, so
that other work on the machine slows both. vLLM's two caches are off, so neither finds the other's prompts.

There are three ratios: of tokens a second; of the same with the preparation added to vLLM's time; and of CPU
seconds, which other work on the machine stretches least. Pictures are drawn as JPEG of each of `--sides`:
on a machine without a free core, decoding and resizing large ones takes time from vLLM.
"""

from __future__ import annotations

import io
import time
from pathlib import Path

import measure
import numpy as np
import psutil
from PIL import Image

from tpru_verl.demo.scenes import make_rows
from tpru_verl.eval.engines.base import Request, Sampling
from tpru_verl.eval.engines.local import Local
from tpru_verl.eval.item import Item
from tpru_verl.eval.results import result_of_row, summarise
from tpru_verl.statistics import paired

CHECKPOINT = Path(__file__).parents[1] / "tpru_verl/demo/checkpoint"
OFF = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--sides", type=int, nargs="+", default=[56, 320], help="default: 56 320")
    parser.add_argument("--model", default=str(CHECKPOINT))
    arguments = parser.parse_args()
    for side in arguments.sides:
        found = compared(arguments.model, arguments.rows, arguments.turns, side)
        print_table(f"{arguments.rows} rows of {side} x {side}, {arguments.turns} turns", found)
    print_table("Statistics", differences())


def print_table(title: str, found: dict[str, list[float]]) -> None:
    rows = [["", "median", *measure.SPREAD]]
    rows += ([name, *measure.spread(values, ".4g")] for name, values in found.items())
    print(f"{measure.markdown(rows, title)}\n")


def compared(model: str, rows: int, turns: int, side: int) -> dict[str, list[float]]:
    """Of each turn: throughputs, their ratios, and the share of time that grading and statistics take."""
    engine = Local(
        model, Sampling(max_tokens=32), min_pixels=3136, max_pixels=3136, max_model_len=256, options=OFF
    )
    requests = [request(row, i, side) for i, row in enumerate(make_rows(rows, seed=9000))]
    engine.start(requests)
    llm, here = engine._llm, psutil.Process()
    assert llm is not None
    found: dict[str, list[float]] = {}
    for turn in range(turns + 1):
        began = time.perf_counter()
        prompts = [engine._prompt(one) for one in requests]
        preparing = time.perf_counter() - began
        params = [engine._params(one) for one in requests]
        began, spent = time.perf_counter(), measure.cpu_seconds(here)
        outputs = llm.generate(prompts, params, use_tqdm=False)  # type: ignore[arg-type]
        generating = time.perf_counter() - began
        their_work, spent = measure.cpu_seconds(here) - spent, measure.cpu_seconds(here)
        theirs = sum(len(one.outputs[0].token_ids) for one in outputs) / generating
        began = time.perf_counter()
        replies = [*engine.answer(requests)]
        answered, our_work = time.perf_counter(), measure.cpu_seconds(here) - spent
        summarise(
            [result_of_row("x", one.item, [(one.item, one.prompt, reply)], None) for one, reply in replies]
        )
        ended = time.perf_counter()
        ours = sum(reply.tokens for _, reply in replies) / (answered - began)
        if not turn:  # the first warms up
            continue
        for name, value in {
            "tokens/s, tpru eval": ours,
            "tokens/s, LLM.generate": theirs,
            "ratio of tokens/s": ours / theirs,
            "the same with their preparation": (preparing + generating) / (answered - began),
            "ratio of CPU seconds": their_work / our_work,
            "share of grading and statistics": (ended - answered) / (ended - began),
        }.items():
            found.setdefault(name, []).append(value)
    engine.close()
    return found


def request(row: object, number: int, side: int) -> Request:
    """A row of the demo, its pictures of 56 x 56 drawn as JPEG of another side."""
    images = []
    for image in row.images:  # type: ignore[attr-defined]
        buffer = io.BytesIO()
        Image.open(io.BytesIO(image)).convert("RGB").resize((side, side)).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    problem, answer, options = row.problem, row.answer, row.options  # type: ignore[attr-defined]
    item = Item(str(number), problem, answer, tuple(images), options, task=str(row.task))  # type: ignore[attr-defined]
    return Request(str(number), item, problem)


def differences() -> dict[str, list[float]]:
    """Seconds to compare two runs of 3,000 rows, of 3,000 sources and of 300."""
    rng = np.random.default_rng(0)
    a, b = (rng.random(3000) < 0.5).astype(float), (rng.random(3000) < 0.55).astype(float)
    found: dict[str, list[float]] = {}
    for sources in (3000, 300):
        for _ in range(5):
            began = time.perf_counter()
            paired(a, b, [str(i % sources) for i in range(3000)])
            name = f"comparing two runs of {sources} sources, s"
            found.setdefault(name, []).append(time.perf_counter() - began)
    return found


if __name__ == "__main__":
    main()
