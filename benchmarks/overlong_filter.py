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
from statistics import median
from typing import TypeVar

# One thread: veRL's filter forks, and OpenMP's threads do not survive that; its worker would wait for ever.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import datasets.config
import numpy as np
from made_rows import BOUNDS, picture, sample, write
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizer, ProcessorMixin
from verl.utils.dataset.rl_dataset import RLHFDataset

from tpru_verl.data.tokens.prompts import COLUMN, KEY_COLUMN, PromptCounter
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
    parser.add_argument("--repeats", type=int, default=5)
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
        datasets.disable_caching()  # or veRL's second run would find the first one's
        config = settings(folder / "verl", limit)
        plain = write(folder / "plain.parquet", samples)
        counted = write(folder / "counted.parquet", samples, stored)
        # Written and read once already: what is timed is the filter, not the disk.
        verl = RLHFDataset(str(plain), tokenizer, config, processor)
        cold = TPRUDataset(str(plain), tokenizer, config, processor)
        read = TPRUDataset(str(counted), tokenizer, config, processor)
        filters = {
            "veRL 0.9.1": (verl, options.verl_rows),
            "ours, cold": (cold, options.rows),
            "ours, counts stored": (read, options.rows),
        }
        speeds: dict[str, list[float]] = {title: [] for title in filters}
        kept: dict[str, list[str]] = {}
        for _ in range(options.repeats):
            for title, (data, rows) in filters.items():  # in turn, because others share the machine
                kept[title], speed = filtered(data, rows)
                speeds[title].append(speed)
        same, _ = filtered(cold, options.verl_rows)
    assert same == kept["veRL 0.9.1"], "veRL and ours keep different rows"
    assert kept["ours, cold"] == kept["ours, counts stored"], "stored and fresh counts keep different rows"

    table = Table("filter, one process", "rows", "kept", "rows/s", "least", "most", "times veRL")
    table.title = f"limit: {limit} tokens, medians of {options.repeats} runs"
    base = median(speeds["veRL 0.9.1"])
    for title, found in speeds.items():
        cells = (f"{value:,.0f}" for value in (median(found), min(found), max(found)))
        rows = str(filters[title][1])
        table.add_row(title, rows, str(len(kept[title])), *cells, f"{median(found) / base:,.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
