"""What a column of images may hold: encoded files in a table, base64, paths, lists of them written out."""

from __future__ import annotations

import base64
import errno
import io
import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from tpru_verl.terminal import line_of

MAX_BYTES = 256 * 2**20  # of one encoded picture: a larger file is a mistake or sparse
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+(?:=\s*){0,2}")
_URL_SAFE = str.maketrans("-_", "+/")
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")  # of the formats that are read
_SHORTEST = 64  # characters of base64 that can be a picture
LONGEST_NAME = 1024  # characters: a longer cell is a picture in base64


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
        return [text] if text else []
    with suppress(ValueError, RecursionError):  # `json.dumps` escapes what is beyond ASCII
        if isinstance(written := json.loads(text), list) and all(isinstance(cell, str) for cell in written):
            return [cell for cell in written if cell]
    inner = (quoted[1] or quoted[2] for quoted in re.finditer(r"'([^']*)'|\"([^\"]*)\"", text))
    return [cell for cell in inner if cell]


def is_missing(value: object) -> bool:
    """Whether a cell is empty: None, "", or the NaN that tables have in its place."""
    return value is None or value == "" or value != value


def is_text_or_number(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def image_bytes(cell: object, folder: Path | None) -> bytes:
    """The encoded file of a cell: bytes, {bytes, path}, base64, Pillow's picture, a path inside `folder`.

    Base64 may be plain or URL-safe, in lines, without padding, or in a data URI with parameters. Raises
    ValueError, in one short line, for anything else and for a file that cannot be read.
    """
    if isinstance(cell, Mapping):
        if not cell.keys() & {"bytes", "path"}:
            raise ValueError(f"found an object with {names_of(cell)}, expected bytes or path in it")
        cell = cell["path"] if cell.get("bytes") is None and "path" in cell else cell.get("bytes")
    if isinstance(cell, (bytes, memoryview)):
        return bytes(cell)
    if callable(save := getattr(cell, "save", None)):
        buffer = io.BytesIO()
        try:
            save(buffer, "PNG")
        except Exception as error:  # Pillow's decoders raise many kinds
            raise ValueError(f"found an image that can't be decoded ({line_of(error)})") from error
        return buffer.getvalue()
    if not isinstance(cell, str):
        found = type(cell).__name__
        raise ValueError(f"found {found}, expected bytes, {{bytes, path}}, base64 or a path")
    if cell.lstrip()[:5].lower() == "data:":
        return _data_uri(cell.strip())
    encoded = _decoded(cell) if len(cell) >= _SHORTEST else None
    if encoded is not None and encoded.startswith(_BEGINNINGS):  # a path without a dot looks like base64, too
        return encoded
    if cell.lower().startswith(("http://", "https://")):
        raise ValueError(f"found the address {short(cell)}, expected the picture (nothing is downloaded)")
    if folder is None:
        raise ValueError(f"found the path {short(cell)}, expected the image's bytes in rows from the Hub")
    return _file_of(cell, folder)


def names_of(names: Iterable[object], most: int = 20) -> str:
    """The first of the names, separated by commas, and how many more there are."""
    every = [*names]
    listed = ", ".join(short(name, 80)[1:-1] if isinstance(name, str) else str(name) for name in every[:most])
    return f"{listed or '(none)'}{f' and {len(every) - most:,} more' * (len(every) > most)}"


def short(value: object, most: int = 60) -> str:
    """The value's `repr`, cut at `most` characters: a cell may hold a whole picture."""
    text = repr(value[: 2 * most]) if isinstance(value, (str, bytes)) else reprlib.repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _data_uri(text: str) -> bytes:
    """The bytes of a data URI in base64 (RFC 2397), whatever its type and parameters. Raises ValueError."""
    head, _, body = text.partition(",")
    if head.lower().rpartition(";")[2].strip() != "base64":
        raise ValueError(f"found the data URI {short(text)}, expected one in base64")
    data = _decoded(unquote(body) if "%" in body else body)
    if data is None:
        raise ValueError(f"found the data URI {short(text)}, whose base64 cannot be decoded")
    return data


def _decoded(text: str) -> bytes | None:
    """Bytes of base64, plain or URL-safe, in one line or several, padded or not; None for other text."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # of Base64's own, and of characters beyond ASCII
        pass
    if not _BASE64.fullmatch(text):
        return None
    plain = "".join(text.split()).rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        return None


def _is_base64(text: str) -> bool:
    return len(text) >= _SHORTEST and _BASE64.fullmatch(text) is not None


def _no_path(text: str) -> str:
    """Of a text that is a picture rather than a path: why it cannot be read."""
    if _is_base64(text):
        return f"found base64 that cannot be decoded to an image: {short(text)}"
    found = f"found {short(text)} of {len(text):,} characters, neither base64 nor a path"
    return f"{found}, expected one of them: look for quotes or characters that base64 has not"


def _file_of(name: str, folder: Path) -> bytes:
    if "\0" in name:
        raise ValueError(f"found {short(name)}, expected a path without NUL")
    try:
        path = (folder / name).resolve()
        inside = folder.resolve() in path.parents
        if len(name) > LONGEST_NAME and not (inside and path.is_file()):
            raise ValueError(_no_path(name))
        if not inside:
            raise ValueError(f"found {short(name)}, expected a path inside {folder}")
        if not path.is_file():
            if _is_base64(name):
                raise ValueError(_no_path(name))
            raise ValueError(f"found {short(name)}, but there is no such file in {folder}")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"found {short(name)} of {size:,} bytes, expected at most {MAX_BYTES:,}")
        return path.read_bytes()
    except (OSError, RuntimeError, MemoryError) as error:  # a name too long, a loop of links, a bad disk
        if _is_base64(name) or (isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG):
            raise ValueError(_no_path(name)) from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else line_of(error)
        raise ValueError(f"found {short(name)}, a path that cannot be read: {reason[:200]}") from error
