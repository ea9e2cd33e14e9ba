"""Rows and images for tests of the data tools."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tpru_verl.data.prepare import PrepareOptions, prepare
from tpru_verl.data.source.forms import Source
from tpru_verl.sample import NONE_OPTION

Row = dict[str, Any]


def picture(seed: int = 0, size: tuple[int, int] = (40, 30), format: str = "PNG", **options: Any) -> bytes:
    """A picture of its own for each seed: coarse noise, so that perceptual hashes differ, too."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, format, **options)
    return buffer.getvalue()


def reordering(seed: int = 0, **changes: Any) -> Row:
    """A row of the published form: four pictures, five options, answer B."""
    pictures = "".join(f" Image {i}: <image>" for i in range(1, 5))
    options = ["1 2 3 4", "3 1 4 2", "4 3 2 1", "2 1 4 3", NONE_OPTION]
    listed = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCDE", options, strict=True))
    return {
        "problem": f"These photos show cooking. What is the correct order?{pictures}{listed}",
        "answer": "B",
        "images": [picture(100 * seed + i) for i in range(4)],
        **changes,
    }


def write_parquet(path: Path, rows: Sequence[Row], row_group_size: int = 4) -> Path:
    """The published form, images as {bytes, path}; text columns as they are in the first row."""
    cells = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "images"}
    images = [[{"bytes": image, "path": None} for image in row["images"]] for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({**columns, "images": pa.array(images, cells)})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_prepared_row(folder: Path, framework: str = "verl") -> Path:
    """A shard of `tpru data prepare`: one row, whose three pictures have a red of 10, 20 and 30."""
    frames = " ".join(f"Frame {i}:<image>" for i in (1, 2, 3))
    pictures = []
    for red in (10, 20, 30):
        buffer = io.BytesIO()
        Image.new("RGB", (56, 56), (red, 0, 0)).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    row = {"problem": f"Reorder. {frames} A. 1 2 3 B. 3 1 2", "answer": "B", "images": pictures}
    source = Source.open(str(write_parquet(folder / "rows.parquet", [row])))
    prepare(source, folder / "OUT", PrepareOptions(framework=framework), workers=1)
    (shard,) = (folder / "OUT" / "data").glob("*.parquet")
    return shard
