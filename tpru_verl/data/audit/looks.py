"""How the images of a row look, for rules that compare them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tpru_verl.data.images import FORMATS, encoding_of, thumbnail
from tpru_verl.data.likeness import bits, perceptual_hash

SMALL = 128  # pixels of the picture from which hash and thumbnail are made


THUMB = 32  # pixels of the grey thumbnail's sides
FINE = 64  # of the thumbnail in which two pictures that look alike are looked for


Distances = NDArray[np.float64]  # (images, images)


class Look(NamedTuple):
    """The features of an image that rules compare."""

    hash: np.uint64  # perceptual; 0 unless asked for
    grey: NDArray[np.float32]  # (THUMB, THUMB), 0 to 255
    fine: NDArray[np.uint8]  # (FINE, FINE)
    bytes: int
    size: tuple[int, int]  # width, height as stored
    encoding: str  # all that tells one program's files from another's

    @property
    def bytes_per_pixel(self) -> float:
        return self.bytes / (self.size[0] * self.size[1])


def look_at(data: bytes, *, hashed: bool) -> Look:
    """Raises ValueError, OSError or SyntaxError for an image that can't be decoded."""
    small = thumbnail(data, SMALL)
    plain = small.convert("L")
    grey = np.asarray(plain.resize((THUMB, THUMB)), np.float32)
    fine = np.asarray(plain.resize((FINE, FINE), Image.Resampling.BOX))
    value = np.uint64(0)
    if hashed:
        buffer = io.BytesIO()
        small.save(buffer, "BMP")  # the hash starts from this very thumbnail: no second decoding of the file
        value = perceptual_hash(buffer.getvalue())
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return Look(value, grey, fine, len(data), image.size, encoding_of(image, data))


def distances(looks: Sequence[Look]) -> dict[str, Distances]:
    """Measure -> (images, images); bits, grey levels, log of the ratio, and 0 or 1 for same or not."""
    hashes = np.array([look.hash for look in looks], np.uint64)
    ratios = np.log([look.bytes_per_pixel for look in looks])
    return {
        "hash": bits(hashes[:, None] ^ hashes).astype(np.float64),
        "pixels": distances_between([look.grey for look in looks]),
        "bytes per pixel": np.abs(ratios[:, None] - ratios),
        "size": _different([look.size for look in looks]),
        "encoding": _different([look.encoding for look in looks]),
    }


def distances_between(greys: Sequence[NDArray[np.float32]]) -> Distances:
    """Mean absolute difference of each pair."""
    flat = np.stack(greys).reshape(len(greys), -1)
    return np.array([np.abs(flat - one).mean(axis=1) for one in flat], np.float64)


def _different(values: Sequence[object]) -> Distances:
    return np.array([[float(a != b) for b in values] for a in values])
