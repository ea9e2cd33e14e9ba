"""Speed and memory of `tpru data validate`, `prepare` and the start of TPRUDataset.

    python benchmarks/data_tools.py                        # 10,000 rows
    python benchmarks/data_tools.py --rows 2000 20000      # does memory grow with the rows?

Rows have five JPEGs of 640 x 480 pixels. The copy beside them is pyarrow's own: it reads each row group and
writes it again, with pyarrow's defaults.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import measure
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import tpru_verl.demo
from tpru_verl.sample import NONE_OPTION

CHECKPOINT = Path(tpru_verl.demo.__file__).with_name("checkpoint")
POOL = 400  # different pictures; rows draw five of them
ROWS_A_GROUP = 100
SHARD_ROWS = 1000


def pictures(count: int, seed: int = 0) -> list[bytes]:
    """JPEGs of 640 x 480 and about 80 kB: smooth shapes with grain, as a camera has."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
        grain = rng.normal(0, 9, smooth.shape)
        buffer = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
        made.append(buffer.getvalue())
    return made


def commented(data: bytes, text: str) -> bytes:
    """The same JPEG with a comment: bytes of its own, as every picture of a real data set has."""
    comment = text.encode()
    return data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]


def write_rows(folder: Path, count: int, pool: list[bytes]) -> None:
    """Shards in the published form: five images and five orders a row."""
    rng = np.random.default_rng(1)
    cells = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    options = "A. 1 2 3 4 5 B. 2 1 3 4 5 C. 5 4 3 2 1 D. 1 3 2 5 4 E. " + NONE_OPTION
    folder.mkdir()
    for shard, start in enumerate(range(0, count, SHARD_ROWS)):
        numbers = range(start, min(start + SHARD_ROWS, count))
        problems = [f"Row {n}: what is the correct order? {'<image>' * 5} {options}" for n in numbers]
        images = [
            [{"bytes": commented(pool[i], f"{n}-{place}"), "path": None} for place, i in enumerate(drawn)]
            for n, drawn in zip(numbers, rng.integers(0, POOL, (len(numbers), 5)), strict=True)
        ]
        answers = ["ABCDE"[n % 5] for n in numbers]
        table = pa.table({"problem": problems, "answer": answers, "images": pa.array(images, cells)})
        pq.write_table(table, folder / f"train-{shard:05d}.parquet", row_group_size=ROWS_A_GROUP)


def copy(source: Path, target: Path) -> float:
    """Seconds of a plain copy through pyarrow."""
    target.mkdir()
    began = time.perf_counter()
    for path in sorted(source.iterdir()):
        with pq.ParquetFile(path) as file, pq.ParquetWriter(target / path.name, file.schema_arrow) as writer:
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group))
    return time.perf_counter() - began


TPRU_DATA = "import sys; sys.argv.insert(1, 'data'); from tpru_verl.cli import main; main()"
# What the trainer does with its rows before the first step: reading, checks, the overlong filter.
START = """
import sys
from omegaconf import OmegaConf
from transformers import AutoProcessor
from tpru_verl.plugin.dataset import TPRUDataset
processor = AutoProcessor.from_pretrained(sys.argv[2])
bounds = {"min_pixels": 16384, "max_pixels": 36864}
config = {**bounds, "mm_processor_kwargs": bounds, "max_prompt_length": 4096}
TPRUDataset(sys.argv[1], processor.tokenizer, OmegaConf.create(config), processor)
"""


COPY = "pyarrow copy"


def measured(
    count: int, pool: list[bytes], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Rows a second and peak memory (GiB) of each program, over `count` rows."""
    programs = {
        "tpru data validate": (TPRU_DATA, "validate", "rows"),
        "tpru data prepare": (TPRU_DATA, "prepare", "rows", "out"),
        "TPRUDataset starts": (START, "rows", CHECKPOINT),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows", count, pool)

        def copied() -> tuple[float, float]:
            seconds = copy(folder / "rows", folder / "copied")
            shutil.rmtree(folder / "copied")
            return seconds, 0.0

        def program(code: str, *arguments: object) -> tuple[float, float]:
            cache = folder / "cache"
            os.environ["HF_DATASETS_CACHE"] = str(cache)
            paths = (folder / each if each in ("rows", "out") else each for each in arguments)
            found = measure.watched([sys.executable, "-c", code, *paths])
            shutil.rmtree(cache, ignore_errors=True)
            return found

        tasks = {COPY: copied, **{title: partial(program, *each) for title, each in programs.items()}}
        found = measure.in_turn(tasks, repeats)
    rates = {title: [count / seconds for seconds, _ in runs] for title, runs in found.items()}
    return rates, {title: [peak for _, peak in found[title]] for title in programs}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    pool = pictures(POOL)
    size = sum(map(len, pool)) / POOL / 1000
    table = [["rows", "", "rows/s", *measure.SPREAD, "of the copy's rate", "peak GiB"]]
    for count in args.rows:
        rates, peaks = measured(count, pool, args.repeats)
        for title, found in rates.items():
            share = f"{median(found) / median(rates[COPY]):.2f}"
            peak = f"{max(peaks[title]):.2f}" if title in peaks else ""
            table.append([f"{count:,}", title, *measure.spread(found), share, peak])
    print(measure.markdown(table, f"Five JPEGs of {size:.0f} kB a row, medians of {args.repeats} runs"))


if __name__ == "__main__":
    main()
