"""`tpru data validate` and `prepare` on rows of five 640x480 JPEGs: rows a second, and memory.

    python benchmarks/data_tools.py                        # 10,000 rows
    python benchmarks/data_tools.py --rows 2000 20000      # does memory grow with the rows?

The copy is pyarrow's own: each row group read and written again, with its defaults.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from tpru_verl.sample import NONE_OPTION

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


def run(*arguments: object) -> tuple[float, float]:
    """Seconds and peak memory (GiB, of the process and its workers) of a `tpru data` command."""
    code = "from tpru_verl.cli import main; main()"
    began = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, "-c", code, "data", *map(str, arguments)], stdout=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"tpru data {arguments[0]} ended with exit code {process.returncode}")
    return time.perf_counter() - began, peak / 2**30


def _resident(process: psutil.Process) -> int:
    """Memory that is the processes' own: pages of libraries and mapped files that they share do not count."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().uss
        except psutil.Error:  # it has just ended
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000])
    pool = pictures(POOL)
    size = sum(map(len, pool)) / POOL / 1000
    table = Table("rows", "", "s", "rows/s", "of the copy's rate", "peak GiB")
    for count in parser.parse_args().rows:
        with tempfile.TemporaryDirectory() as name:
            rows, copied, out = (Path(name) / part for part in ("rows", "copied", "out"))
            write_rows(rows, count, pool)
            plain = copy(rows, copied)
            table.add_row(f"{count:,}", "pyarrow copy", f"{plain:.1f}", f"{count / plain:,.0f}", "1.00", "")
            for command in (["validate", rows], ["prepare", rows, out]):
                seconds, memory = run(*command)
                rate = (f"{seconds:.1f}", f"{count / seconds:,.0f}", f"{plain / seconds:.2f}")
                table.add_row("", f"tpru data {command[0]}", *rate, f"{memory:.2f}")
    Console().print(f"five JPEGs of {size:.0f} kB a row", table)


if __name__ == "__main__":
    main()
