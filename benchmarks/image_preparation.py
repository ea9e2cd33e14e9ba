"""CPU seconds to prepare a trajectory's images: stock veRL's agent-loop worker, and ours.

    python benchmarks/image_preparation.py

Rows of five JPEGs of 640 x 480 pixels, n = 5 samples a prompt, at most 36,864 pixels an image after resizing.
From a row of the data set to what is written for the trainer, whole but for Ray, vLLM and TransferQueue:
reading, pickling for the worker, decoding (once a prompt with either), resizing, the processor, positions,
reward. The images' way to vLLM and its own processing, n times a prompt in stock veRL, come on top there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np
from made_rows import IMAGES, picture, sample, write
from rich.console import Console
from rich.table import Table
from support.rollouts import Rollouts

from tpru_verl import recipes
from tpru_verl.demo.run import CHECKPOINT
from tpru_verl.plugin.agent_loop import TPRUAgentLoopWorker, _StockWorker


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=5, help="n of a prompt")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.parquet")
        rng = np.random.default_rng(0)
        pictures = [picture(rng) for _ in range(4 * IMAGES)]
        write(rows, [sample(i, pictures) for i in range(args.prompts)])
        config = recipes.compose(
            "tpru_tiny_cpu",
            [
                f"data.train_files={rows}",
                f"data.val_files={rows}",
                f"actor_rollout_ref.model.path={CHECKPOINT}",
                f"actor_rollout_ref.rollout.n={args.samples}",
                "data.min_pixels=16384",
                "data.max_pixels=36864",
                "+data.mm_processor_kwargs.min_pixels=16384",
                "+data.mm_processor_kwargs.max_pixels=36864",
                "data.max_prompt_length=2048",
                "actor_rollout_ref.rollout.max_model_len=2080",
            ],
        )
        stock = deepcopy(config)
        stock.data.custom_cls.path = None  # veRL's own data set
        with redirect_stdout(sys.stderr):  # veRL's data set prints
            ready = {
                "stock veRL 0.9.1": Rollouts(stock, _StockWorker, args.prompts, keep=False),
                "ours": Rollouts(config, TPRUAgentLoopWorker, args.prompts, keep=False),
            }
        seconds: dict[str, list[float]] = {name: [] for name in ready}
        for repeat in range(args.repeats + 1):
            for name, rollouts in ready.items():  # in turn, because others share the machine
                begin = time.process_time()
                rollouts.run()
                if repeat:  # the first one warms up
                    spent = time.process_time() - begin
                    seconds[name].append(1000 * spent / args.prompts / args.samples)
    title = f"{args.prompts} prompts of {IMAGES} images x {args.samples}, {args.repeats} runs, one thread"
    table = Table("", "CPU ms a trajectory", "least", "most", "times ours", title=title)
    base = median(seconds["ours"])
    for name, values in seconds.items():
        cells = (f"{value:.1f}" for value in (median(values), min(values), max(values)))
        table.add_row(name, *cells, f"{median(values) / base:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
