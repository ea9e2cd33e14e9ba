"""`tpru data validate`, `prepare` and the start of TPRUDataset on rows of five 640x480 JPEGs.

    python benchmarks/data_tools.py                        # 10,000 rows
    python benchmarks/data_tools.py --rows 2000 20000      # does memory grow with the rows?

The copy is pyarrow's own: each row group read and written again, with its defaults.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

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


def run(code: str, *arguments: object) -> tuple[float, float]:
    """Seconds and peak memory (GiB, of the process and its workers) of a program."""
    began = time.perf_counter()
    process = psutil.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{code}: ended with exit code {process.returncode}")
    return time.perf_counter() - began, peak / 2**30


def _resident(process: psutil.Process) -> int:
    """Bytes that the processes hold themselves (RssAnon): pages of mapped files are the kernel's to drop."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            status = Path(f"/proc/{each.pid}/status").read_text()
            total += 1024 * int(status.partition("RssAnon:")[2].split(maxsplit=1)[0])
        except (psutil.Error, OSError, IndexError):  # it has just ended
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    pool = pictures(POOL)
    size = sum(map(len, pool)) / POOL / 1000
    table = Table("rows", "", "rows/s", "least", "most", "of the copy's rate", "peak GiB")
    table.title = f"five JPEGs of {size:.0f} kB a row, medians of {args.repeats} runs"
    for count in args.rows:
        rates: dict[str, list[float]] = {}
        peaks: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory() as name:
            rows, copied, out = (Path(name) / part for part in ("rows", "copied", "out"))
            write_rows(rows, count, pool)
            for repeat in range(args.repeats):
                rates.setdefault("pyarrow copy", []).append(count / copy(rows, copied))
                shutil.rmtree(copied)
                os.environ["HF_DATASETS_CACHE"] = f"{name}/cache{repeat}"
                for title, code, arguments in (
                    ("tpru data validate", TPRU_DATA, ("validate", rows)),
                    ("tpru data prepare", TPRU_DATA, ("prepare", rows, out)),
                    ("TPRUDataset starts", START, (rows, CHECKPOINT)),
                ):
                    seconds, memory = run(code, *arguments)
                    rates.setdefault(title, []).append(count / seconds)
                    peaks.setdefault(title, []).append(memory)
                shutil.rmtree(f"{name}/cache{repeat}")
        for title, found in rates.items():
            cells = [f"{value:,.0f}" for value in (median(found), min(found), max(found))]
            share = f"{median(found) / median(rates['pyarrow copy']):.2f}"
            peak = f"{max(peaks[title]):.2f}" if title in peaks else ""
            table.add_row("" if title in peaks else f"{count:,}", title, *cells, share, peak)
    Console().print(table)


if __name__ == "__main__":
    main()
