"""Rows of temporal reordering for benchmarks: five JPEGs of 640 x 480 pixels each, and different texts."""

from __future__ import annotations

import io
import random
import string
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tpru_verl.prompts import render
from tpru_verl.sample import Sample, Task

BOUNDS = {"min_pixels": 16384, "max_pixels": 36864}  # the recipe's
IMAGES = 5
ORDERS = list(permutations("12345"))


def picture(rng: np.random.Generator) -> bytes:
    """A JPEG of 640 x 480 pixels and some 80 KB: coarse shapes under noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 9, (480, 640, 3))
    buffer = io.BytesIO()
    pixels = np.clip(np.asarray(coarse, np.float32) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=86)
    return buffer.getvalue()


def vocabulary(size: int = 5000) -> list[str]:
    """Made-up words of 2 to 9 letters."""
    rng = random.Random(0)
    return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(size)]


WORDS = vocabulary()
WEIGHTS = [1 / (rank + 1) for rank in range(len(WORDS))]  # Zipf's: as often as words are in English


def sample(i: int, pictures: list[bytes]) -> Sample:
    """A row of temporal reordering; no two have the same text."""
    rng = random.Random(i)
    orders = [" ".join(order) for order in rng.sample(ORDERS, 4)]
    scene = " ".join(rng.choices(WORDS, WEIGHTS, k=30))
    problem = (
        f"These photos show {scene}. Below are {IMAGES} images in random order, "
        f"labelled 1-{IMAGES}. What is the correct sequence?\n"
        + " ".join(f"{n + 1}: <image>" for n in range(IMAGES))
        + "".join(f"\n{letter}. {order}" for letter, order in zip("ABCD", orders, strict=True))
    )
    images = tuple(rng.sample(pictures, IMAGES))
    return Sample(problem, "A", images, Task.TEMPORAL_REORDERING, "bench", "", str(i))


def write(path: Path, samples: list[Sample], columns: dict[str, list[object]] | None = None) -> Path:
    """A file that both read: our columns and veRL's, whose prompt is the rendered one."""
    with pq.ParquetWriter(path, _table(samples[:1], columns, 0).schema, compression="none") as writer:
        for start in range(0, len(samples), 64):
            writer.write_table(_table(samples[start : start + 64], columns, start))
    return path


def _table(samples: list[Sample], columns: dict[str, list[object]] | None, start: int) -> pa.Table:
    rows = [
        {
            "problem": s.problem,
            "answer": s.answer,
            "task": s.task.value,
            "images": [{"bytes": data, **BOUNDS} for data in s.images],
            "data_source": s.task.data_source,
            "prompt": [{"role": "user", "content": render(s.problem, s.task)}],
            "reward_model": {"style": "rule", "ground_truth": s.answer},
            **{name: values[start + i] for name, values in (columns or {}).items()},
        }
        for i, s in enumerate(samples)
    ]
    return pa.Table.from_pylist(rows)
