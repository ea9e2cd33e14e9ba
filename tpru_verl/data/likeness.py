"""Whether two pictures look alike: perceptual hashes, and the share of the pixels that changed.

A hash finds copies at other sizes and qualities. It is no measure for screens: of two screens that differ in
their clock alone it may differ in half of its bits, because a flat picture has few strong frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

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


LEVEL = 12  # grey levels of 255 from which a pixel counts as changed; the noise of JPEG is smaller
CLEARLY = 0.02  # share of pixels: two pictures of different sequences that differ in fewer may show the same


def changes(greys: NDArray[np.uint8], watched: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """(frames, frames) share of the pixels in which thumbnails `greys` (frames, side, side) differ.

    Only pixels that are true in `watched` (side, side) are compared.
    """
    flat = greys.reshape(len(greys), -1)
    pixels = flat.shape[1]
    if watched is not None:
        flat = flat[:, watched.ravel()]
    shares = np.zeros((len(flat), len(flat)))
    for i, one in enumerate(flat[:-1]):
        later = flat[i + 1 :]
        apart = np.maximum(later, one) - np.minimum(later, one)
        shares[i, i + 1 :] = shares[i + 1 :, i] = (apart > LEVEL).sum(1, dtype=np.int32) / pixels
    return shares


_TILE = 4  # pixels of a thumbnail's sides
_EDGE = 8  # pixels: clocks, status bars and burnt-in times lie this near to an edge
_PAIRS = 10  # pairs of pictures that have to tell of a clock
_SEEN_IN = 0.1  # share of these pairs in which a part of the clock changes


def watched_of(greys: NDArray[np.uint8], items: Sequence[str]) -> NDArray[np.bool_]:
    """(side, side) false where clocks and status bars run, by pictures (frames, side, side) of one scene.

    Pictures of different items that are the same but for their edge tell: what differs there runs on by
    itself. All pixels are true where fewer than _PAIRS pairs of three items tell anything.
    """
    side = greys.shape[1]
    watched = np.ones((side, side), bool)
    inner = np.zeros((side, side), bool)
    inner[_EDGE:-_EDGE, _EDGE:-_EDGE] = True
    names = np.array(items)  # an array, to compare all with all
    same = np.triu(changes(greys, inner) < CLEARLY / 4, 1) & (names[:, None] != names)
    pairs, tell, told = np.argwhere(same), np.zeros((side // _TILE, side // _TILE), int), set[str]()
    found = 0
    for i, j in pairs[:: 1 + len(pairs) // 1000]:
        apart = np.maximum(greys[i], greys[j]) - np.minimum(greys[i], greys[j]) > LEVEL
        apart &= ~inner
        if apart.any() and apart.mean() < CLEARLY:
            found += 1
            told |= {items[i], items[j]}
            tell += apart.reshape(side // _TILE, _TILE, -1, _TILE).any((1, 3))
    if found >= _PAIRS and len(told) >= 3:
        runs = tell >= _SEEN_IN * found
        watched &= ~np.kron(runs, np.ones((_TILE, _TILE), bool))
    return watched
