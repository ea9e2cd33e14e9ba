"""What `tpru data prepare` and `tpru build` wrote, read back."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from support.rows import Row


def read(folder: Path, split: str = "train") -> list[Row]:
    return [
        row
        for path in sorted(folder.glob(f"data/{split}-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
