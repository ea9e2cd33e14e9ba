"""The filter of overlong prompts: veRL's decodes every image, TPRUDataset's reads headers only.

    python benchmarks/overlong_filter.py
    python benchmarks/overlong_filter.py --rows 4000 --model Qwen/Qwen2.5-VL-7B-Instruct

Rows have five JPEGs of 640 x 480 pixels (about 80 KB each), at most 36,864 pixels an image after resizing.
Both filters count the same prompts of the same file with the same processor. They take turns, each in one
process and one thread, and have to keep the same rows.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median

# One thread: veRL's filter forks, and OpenMP's threads do not survive that; its worker would wait for ever.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import datasets.config
import measure
import numpy as np
from made_rows import BOUNDS, picture, sample, write
from omegaconf import DictConfig, OmegaConf
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizer, ProcessorMixin
from verl.utils.dataset.rl_dataset import RLHFDataset

from tpru_verl.data.tokens.prompts import COLUMN, KEY_COLUMN, PromptCounter
from tpru_verl.demo.run import CHECKPOINT
from tpru_verl.plugin.dataset import TPRUDataset
from tpru_verl.plugin.prompt_lengths import without_long_prompts

VERL, COLD, STORED = "veRL 0.9.1", "TPRUDataset, no stored counts", "TPRUDataset, stored counts"


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


def filtered(data: RLHFDataset, rows: int) -> tuple[list[str], float]:
    """Texts of the kept ones of the first `rows` rows, and rows a second."""
    data.filter_overlong_prompts = True
    frame = data.dataframe.select(range(rows))
    started = time.perf_counter()
    if isinstance(data, TPRUDataset):  # its check of the rows reads the sizes that the filter counts with
        kept = without_long_prompts(data, *data.sound_rows(frame))
    else:
        kept = data.maybe_filter_out_long_prompts(frame)
    return list(kept["problem"]), rows / (time.perf_counter() - started)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=1000, help="for ours")
    parser.add_argument("--verl-rows", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default=str(CHECKPOINT), help="whose processor counts")
    options = parser.parse_args()
    processor: ProcessorMixin = AutoProcessor.from_pretrained(options.model)
    tokenizer: PreTrainedTokenizer = AutoTokenizer.from_pretrained(options.model)
    rng = np.random.default_rng(0)
    pictures = [picture(rng) for _ in range(40)]
    samples = [sample(i, pictures) for i in range(options.rows)]

    counter = PromptCounter(processor, pixel_bounds=BOUNDS, processor_kwargs=BOUNDS)
    tokens = counter.count(samples)
    limit = int(np.median(tokens))  # so that half of the rows go
    stored: dict[str, list[object]] = {COLUMN: [*tokens], KEY_COLUMN: [counter.key] * len(tokens)}
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):  # veRL prints
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        datasets.disable_caching()  # or veRL's second run would find the first one's
        config = settings(folder / "verl", limit)
        plain = write(folder / "plain.parquet", samples)
        counted = write(folder / "counted.parquet", samples, stored)
        # All rows are read before the clock starts: it times the filter, not the disk.
        verl = RLHFDataset(str(plain), tokenizer, config, processor)
        cold = TPRUDataset(str(plain), tokenizer, config, processor)
        read = TPRUDataset(str(counted), tokenizer, config, processor)
        counts = {VERL: options.verl_rows, COLD: options.rows, STORED: options.rows}
        found = measure.in_turn(
            {
                VERL: partial(filtered, verl, counts[VERL]),
                COLD: partial(filtered, cold, counts[COLD]),
                STORED: partial(filtered, read, counts[STORED]),
            },
            options.repeats,
        )
        same, _ = filtered(cold, options.verl_rows)
    kept = {name: runs[-1][0] for name, runs in found.items()}
    assert same == kept[VERL], "veRL and TPRUDataset keep different rows"
    assert kept[COLD] == kept[STORED], "stored and fresh counts keep different rows"

    speeds = {name: [speed for _, speed in runs] for name, runs in found.items()}
    table = [["filter, one process", "rows", "kept", "rows/s", *measure.SPREAD, "times veRL"]]
    for name, values in speeds.items():
        times = f"{median(values) / median(speeds[VERL]):,.0f}"
        table.append([name, str(counts[name]), str(len(kept[name])), *measure.spread(values), times])
    size = np.mean([len(p) for p in pictures]) / 1000
    title = f"{size:.0f} KB an image, limit {limit} tokens, medians of {options.repeats} runs"
    print(measure.markdown(table, title))


if __name__ == "__main__":
    main()
