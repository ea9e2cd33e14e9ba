"""Whether two pictures look alike: perceptual hashes and their distance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tpru_verl.data.images import thumbnail
from tpru_verl.terminal import needs

HASH_SIDE = 8  # a perceptual hash has 64 bits


HASHED = 128  # pixels of the thumbnail that is hashed


def perceptual_hash(data: bytes) -> np.uint64:
    """DCT hash of 64 bits (`imagehash.phash`): pictures that look alike differ in few bits.

    Raises ValueError for an image that can't be decoded, and without `imagehash`.
    """
    return hash_of(thumbnail(data, HASHED))


def hash_of(small: Image.Image) -> np.uint64:
    """The perceptual hash of a thumbnail of HASHED pixels. Raises ValueError without `imagehash`."""
    try:
        import imagehash
    except ImportError:
        raise needs("build", "imagehash", "comparing pictures") from None
    bits: NDArray[np.bool_] = imagehash.phash(small, HASH_SIDE).hash
    return np.packbits(bits.ravel()).view(np.uint64)[0]


# Bits of 64 in which hashes of one picture at two sizes or qualities still differ (imagehash's documentation
# compares thumbnails within 10; frames of one video come closer than that, so less is asked for here).
SAME_PICTURE = 4


_BITS = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


Hashes = NDArray[np.uint64]


def bits(values: Hashes) -> NDArray[np.uint8]:
    """Bits set in each value (`numpy.bitwise_count`, which NumPy has from 2.0 on)."""
    return _BITS[values[..., None].view(np.uint16)].sum(-1, dtype=np.uint8)
