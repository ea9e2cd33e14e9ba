"""`tpru eval` against vLLM's own batch API, on the same prompts in the same engine.

    python benchmarks/evaluation.py --rows 100 --turns 8

Ours starts from encoded files, decodes and resizes them, asks, and judges; `LLM.generate` gets pictures that
were decoded and resized before its clock starts. The two take turns, so that whatever else the machine does
meets both; neither finds the other's prompts in a cache, as both caches are off.

`ratio` is that of tokens a second, `ratio_whole` the same with the preparation added to their time,
`ratio_cpu` that of CPU seconds, which other work on the machine stretches least. `--side 320` draws the
pictures larger: on a machine without a free core, decoding them is time taken from vLLM.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from PIL import Image

from tpru_verl.demo.scenes import make_rows
from tpru_verl.eval.engines import Local, Request, Sampling
from tpru_verl.eval.item import Item
from tpru_verl.eval.results import line_of_row, summarise
from tpru_verl.eval.statistics import paired

CHECKPOINT = Path(__file__).parents[1] / "tpru_verl/demo/checkpoint"
OFF = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--side", type=int, default=56)
    parser.add_argument("--model", default=str(CHECKPOINT))
    arguments = parser.parse_args()
    print(
        json.dumps(
            measure(arguments.model, arguments.rows, arguments.turns, arguments.side) | bootstrap(), indent=1
        )
    )


def measure(model: str, rows: int, turns: int, side: int) -> dict[str, object]:
    """Median ratio of throughput over turns, and what judging and statistics take of the time."""
    engine = Local(
        model, Sampling(max_tokens=32), min_pixels=3136, max_pixels=3136, max_model_len=256, options=OFF
    )
    requests = [request(row, i, side) for i, row in enumerate(make_rows(rows, seed=9000))]
    engine.start(requests)
    llm = engine._llm
    assert llm is not None
    ratios, whole, work, shares, rates = [], [], [], [], []
    for turn in range(turns + 1):
        began = time.perf_counter()
        prompts = [engine._prompt(one) for one in requests]
        preparing = time.perf_counter() - began
        params = [engine._params(one) for one in requests]
        began, spent = time.perf_counter(), cpu_seconds()
        outputs = llm.generate(prompts, params, use_tqdm=False)  # type: ignore[arg-type]
        generating = time.perf_counter() - began
        their_work, spent = cpu_seconds() - spent, cpu_seconds()
        theirs = sum(len(one.outputs[0].token_ids) for one in outputs) / generating
        began = time.perf_counter()
        replies = [*engine.answer(requests)]
        answered, our_work = time.perf_counter(), cpu_seconds() - spent
        lines = [line_of_row("x", one.item, [(one.item, one.prompt, reply)], None) for one, reply in replies]
        summarise(lines)
        ended = time.perf_counter()
        ours = sum(reply.tokens for _, reply in replies) / (answered - began)
        if turn:  # the first warms up
            ratios.append(ours / theirs)
            work.append(their_work / our_work)
            whole.append((preparing + generating) / (answered - began))
            rates.append((round(ours), round(theirs)))
            shares.append((ended - answered) / (ended - began))
    engine.close()
    return {
        "rows": rows,
        "side": side,
        "tokens_per_second_ours_theirs": rates,
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio_cpu": round(median(work), 3),
        "ratios_cpu": [round(ratio, 3) for ratio in work],
        "ratio_whole": round(median(whole), 3),
        "ratios_whole": [round(ratio, 3) for ratio in whole],
        "judging_and_statistics_share": round(median(shares), 4),
    }


def cpu_seconds() -> float:
    """Of this process and those of vLLM: what a busy machine does not stretch."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(one.user + one.system for one in times)


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


def bootstrap() -> dict[str, float]:
    """Seconds for 10,000 draws over 3,000 rows, of 3,000 sources and of 300."""
    rng = np.random.default_rng(0)
    a, b = (rng.random(3000) < 0.5).astype(float), (rng.random(3000) < 0.55).astype(float)
    seconds = {}
    for sources in (3000, 300):
        began = time.perf_counter()
        paired(a, b, [str(i % sources) for i in range(3000)])
        seconds[f"bootstrap_seconds_{sources}_sources"] = round(time.perf_counter() - began, 3)
    return seconds


if __name__ == "__main__":
    main()
