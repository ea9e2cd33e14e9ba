"""CPU seconds to prepare a trajectory's images, in stock veRL's agent-loop worker and in ours.

    python benchmarks/image_preparation.py

Rows have five JPEGs of 640 x 480 pixels, n = 5 samples a prompt, at most 36,864 pixels an image after
resizing. The clock runs from a row of the data set to the tensors that are written for the trainer: reading,
pickling for the worker, decoding (both do it once a prompt), resizing, the processor, positions, reward. Ray,
vLLM and TransferQueue are left out. Stock veRL also sends the images to vLLM n times a prompt, and vLLM
processes them each time; that cost is not in these figures.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import redirect_stdout
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import measure
import numpy as np
from made_rows import IMAGES, picture, sample, write
from support.rollouts import Rollouts

from tpru_verl import recipes
from tpru_verl.demo.run import CHECKPOINT
from tpru_verl.plugin.agent_loop import TPRUAgentLoopWorker, _StockWorker

OURS = "with the plugin"


def cpu_time(rollouts: Rollouts) -> float:
    begin = time.process_time()
    rollouts.run()
    return time.process_time() - begin


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=5, help="n of a prompt")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "rows.parquet")
        rng = np.random.default_rng(0)
        pictures = [picture(rng) for _ in range(4 * IMAGES)]
        write(source, [sample(i, pictures) for i in range(args.prompts)])
        config = recipes.compose(
            "tpru_tiny_cpu",
            [
                f"data.train_files={source}",
                f"data.val_files={source}",
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
                OURS: Rollouts(config, TPRUAgentLoopWorker, args.prompts, keep=False),
            }
        spent = measure.in_turn(
            {name: partial(cpu_time, rollouts) for name, rollouts in ready.items()}, args.repeats, warm_up=1
        )
    title = f"{args.prompts} prompts of {IMAGES} images x {args.samples}, {args.repeats} runs, one thread"
    rows = [["", "CPU ms a trajectory", *measure.SPREAD, "times the plugin's"]]
    for name, values in spent.items():
        milliseconds = [1000 * value / args.prompts / args.samples for value in values]
        rows.append(
            [name, *measure.spread(milliseconds, ".1f"), f"{median(values) / median(spent[OURS]):.1f}"]
        )
    print(measure.markdown(rows, title))


if __name__ == "__main__":
    main()
