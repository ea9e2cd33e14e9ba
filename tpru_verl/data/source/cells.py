"""What a column of images may hold: encoded files in a table, base64, paths, lists of them written out."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

_DATA_URI = re.compile(r"data:image/?[\w.+-]*;base64,")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{64,}={0,2}")  # long enough to be a picture, and no path


def image_cells(images: pa.Array) -> Iterator[object]:
    """Cells of each row of a column of images: views into the table, not copies, where it has all the bytes.

    `images`: a list, one element a row, of binary or of {bytes, path}; anything else comes as Python has it.
    """
    files = images.flatten() if isinstance(images, pa.ListArray) else None
    if files is not None and pa.types.is_struct(files.type) and files.type.get_field_index("bytes") >= 0:
        # `field` forgets a slice's offset, `flatten` keeps it.
        files = files.flatten()[files.type.get_field_index("bytes")]
    if files is None or files.null_count or images.null_count or not pa.types.is_binary(files.type):
        yield from images.to_pylist()
        return
    _, starts, data = files.buffers()
    ends = np.frombuffer(starts, np.int32)[files.offset : files.offset + len(files) + 1].tolist()
    whole = memoryview(data).cast("B") if data else memoryview(b"")
    views = [whole[start:end] for start, end in pairwise(ends)]
    rows = np.cumsum([0, *images.value_lengths().to_pylist()]).tolist()
    yield from (views[start:end] for start, end in pairwise(rows))


def cells_of_text(text: str) -> list[object]:
    """One picture or path, or a list of them written out, as tables without nested cells hold it."""
    text = text.strip()
    if not text.startswith("["):
        return [text]
    inner = (quoted[1] or quoted[2] for quoted in re.finditer(r"'([^']*)'|\"([^\"]*)\"", text))
    return [cell for cell in inner if cell]


def image_bytes(cell: object, folder: Path | None) -> bytes:
    """The encoded file of a cell: bytes, {bytes, path}, base64, Pillow's picture, a path inside `folder`.

    Raises ValueError for anything else.
    """
    if isinstance(cell, Mapping):
        cell = cell["path"] if cell.get("bytes") is None and "path" in cell else cell.get("bytes")
    if isinstance(cell, (bytes, memoryview)):
        return bytes(cell)
    if callable(save := getattr(cell, "save", None)):
        buffer = io.BytesIO()
        save(buffer, "PNG")
        return buffer.getvalue()
    if not isinstance(cell, str):
        found = type(cell).__name__
        raise ValueError(f"found {found}, expected bytes, {{bytes, path}}, base64 or a path")
    if uri := _DATA_URI.match(cell):
        return _decoded(cell[uri.end() :])
    if _BASE64.fullmatch(cell):
        return _decoded(cell)
    if folder is None:
        raise ValueError(f"found the path {cell!r}, expected the image's bytes in rows from the Hub")
    path = (folder / cell).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"found {cell!r}, expected a path inside {folder}")
    if not path.is_file():
        raise ValueError(f"found {cell!r}, but there is no such file in {folder}")
    return path.read_bytes()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"found base64 that cannot be decoded: {error}") from error
