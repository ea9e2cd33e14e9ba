"""The filter of overlong prompts: veRL's, which decodes every image, beside ours, which reads headers.

    python benchmarks/overlong_filter.py
    python benchmarks/overlong_filter.py --rows 4000 --model Qwen/Qwen2.5-VL-7B-Instruct

Rows of five JPEGs of 640 x 480 pixels (about 80 KB each), at most 36,864 pixels an image after resizing. Both
count the same prompts of the same file with the same processor, one after the other, each in one process and
one thread, and have to keep the same rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TypeVar

# One thread: veRL's filter forks, and OpenMP's threads do not survive that; its worker would wait for ever.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets.config
import numpy as np
from made_rows import BOUNDS, picture, sample, write
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizer, ProcessorMixin
from verl.utils.dataset.rl_dataset import RLHFDataset

from tpru_verl.data.tokens import COLUMN, KEY_COLUMN, PromptCounter
from tpru_verl.demo.run import CHECKPOINT
from tpru_verl.plugin.dataset import TPRUDataset

Result = TypeVar("Result")


def settings(cache: Path, limit: int) -> DictConfig:
    return OmegaConf.create(
        {
            "cache_dir": str(cache),
            "prompt_key": "prompt",
            "image_key": "images",
            "max_prompt_length": limit,
            "filter_overlong_prompts": False,  # on once the rows are loaded: loading is not the filter
            "filter_overlong_prompts_workers": 1,
            "mm_processor_kwargs": BOUNDS,
            **BOUNDS,
        }
    )


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def filtered(data: RLHFDataset, rows: int) -> tuple[list[str], float]:
    """Texts of the kept ones of the first `rows` rows, and rows a second."""
    data.filter_overlong_prompts = True
    frame = data.dataframe.select(range(rows))
    ours = isinstance(data, TPRUDataset)
    run = data._without_long_prompts if ours else data.maybe_filter_out_long_prompts
    kept, seconds = timed(lambda: run(frame))
    return list(kept["problem"]), rows / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1000, help="for ours")
    parser.add_argument("--verl-rows", type=int, default=60)
    parser.add_argument("--model", default=str(CHECKPOINT), help="whose processor counts")
    options = parser.parse_args()
    console = Console()
    processor: ProcessorMixin = AutoProcessor.from_pretrained(options.model)
    tokenizer: PreTrainedTokenizer = AutoTokenizer.from_pretrained(options.model)
    rng = np.random.default_rng(0)
    pictures = [picture(rng) for _ in range(40)]
    samples = [sample(i, pictures) for i in range(options.rows)]
    console.print(f"{options.rows} rows, {np.mean([len(p) for p in pictures]) / 1000:.0f} KB an image")

    counter = PromptCounter(processor, pixel_bounds=BOUNDS, processor_kwargs=BOUNDS)
    counts = counter.count(samples)
    limit = int(np.median(counts))  # so that half of the rows go
    stored: dict[str, list[object]] = {COLUMN: [*counts], KEY_COLUMN: [counter.key] * len(counts)}
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):  # veRL prints
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        config = settings(folder / "verl", limit)
        plain = write(folder / "plain.parquet", samples)
        counted = write(folder / "counted.parquet", samples, stored)
        # Written and read once already: what is timed is the filter, not the disk.
        verl_kept, verl = filtered(RLHFDataset(str(plain), tokenizer, config, processor), options.verl_rows)
        cold_data = TPRUDataset(str(plain), tokenizer, config, processor)
        cold_kept, cold = filtered(cold_data, options.rows)
        same_kept, _ = filtered(cold_data, options.verl_rows)
        stored_data = TPRUDataset(str(counted), tokenizer, config, processor)
        stored_kept, quick = filtered(stored_data, options.rows)
    assert same_kept == verl_kept, "veRL and ours keep different rows"
    assert cold_kept == stored_kept, "stored and fresh counts keep different rows"

    table = Table(
        "filter, one process", "rows", "kept", "rows/s", "times veRL", title=f"limit: {limit} tokens"
    )
    for name, rows, kept, speed in (
        ("veRL 0.9.1", options.verl_rows, verl_kept, verl),
        ("ours, cold", options.rows, cold_kept, cold),
        ("ours, counts stored", options.rows, stored_kept, quick),
    ):
        table.add_row(name, str(rows), str(len(kept)), f"{speed:,.0f}", f"{speed / verl:,.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
