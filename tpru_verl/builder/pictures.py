"""Measures frames (hash, thumbnail, contrast, sharpness), compares two of them, and encodes pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tpru_verl.builder.clips import GREY
from tpru_verl.data.images import (
    FORMATS,
    MAX_PIXELS,
    PLAIN_MODES,
    encoding_of,
    on_white,
    read_header,
    upright,
)
from tpru_verl.data.likeness import HASHED, LEVEL, Hashes, perceptual_hash
from tpru_verl.terminal import line_of

QUALITY = 92  # of pictures that have to be encoded anew
# Formats that Pillow reads and that trainers may not read: frames in them become PNG, without a loss.
CONVERTED = {
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG2000"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **{".avif": "AVIF", ".qoi": "QOI", ".tga": "TGA", ".pcx": "PCX", ".dds": "DDS"},
}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8")  # of FORMATS
_BITS = np.array([value.bit_count() for value in range(256)], np.uint8)

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class FrameLook:
    """What is measured of a frame."""

    hash: NDArray[np.uint8]  # (HASH_BYTES,)
    grey: Grey  # (GREY, GREY)
    leak_hash: Hashes  # as `tpru data validate --against` compares; empty unless asked for
    contrast: float
    sharpness: float


def in_common_format(data: bytes) -> bytes:
    """`data`, as PNG where its format is one of CONVERTED.

    Raises ValueError for a picture of these formats that is too large, broken or has several pages. Bytes of
    other formats come back as they are.
    """
    if data.startswith(_SIGNATURES):
        return data
    try:
        image = Image.open(io.BytesIO(data), formats=[*{*CONVERTED.values()}])
    except Exception:  # Pillow's readers raise many kinds
        return data
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"found {image.width} x {image.height} pixels, expected at most {MAX_PIXELS}")
        if (pages := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"found {pages} pictures in one file, expected one")
        if image.mode not in (*PLAIN_MODES, "I;16", "I"):
            raise ValueError(f"found {image.format} of mode {image.mode}, expected 8 bits of grey or RGB")
        buffer = io.BytesIO()
        try:
            ImageOps.exif_transpose(image).save(buffer, "PNG")
        except Exception as error:
            reason = f"found {image.format} that can't be decoded ({line_of(error)})"
            raise ValueError(f"{reason}, expected a whole picture") from error
    return buffer.getvalue()


def look_at(data: bytes, compared: Sequence[bytes] = ()) -> FrameLook:
    """Measure a picture; `compared` are those whose hashes find it in a test set.

    Raises ValueError for one that cannot be decoded.
    """
    import imagehash

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # Of a JPEG, brightness alone, at no more than the scale that is looked at.
            image.draft(
                "L", (image.width * HASHED // max(image.size), image.height * HASHED // max(image.size))
            )
            small = on_white(image).convert("L")
        small.thumbnail((HASHED, HASHED), Image.Resampling.BOX)
        leak = np.array([perceptual_hash(one) for one in compared], np.uint64)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"found an image that can't be decoded ({error}), expected a whole one") from error
    bits: NDArray[np.bool_] = imagehash.phash(small, 16).hash
    grey = np.asarray(small.resize((GREY, GREY), Image.Resampling.BOX))
    pixels = np.asarray(small, np.float32)
    return FrameLook(np.packbits(bits.ravel()), grey, leak, float(grey.std()), sharpness(pixels))


def sharpness(grey: NDArray[np.float32]) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000): low where edges are soft."""
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float(laplacian.var())


def bits_between(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Bits in which the hash `one` (bytes,) differs from each of `others` (..., bytes)."""
    return _BITS[others ^ one].sum(-1, dtype=np.int64)


def change_between(one: Grey, others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of pixels by which `one` (GREY, GREY) differs from each of `others` (..., GREY, GREY)."""
    apart = np.abs(others.astype(np.int16) - one)
    return np.count_nonzero(apart > LEVEL, axis=(-2, -1)) / (GREY * GREY)


def alike(images: list[bytes], name: str) -> tuple[str, list[bytes]]:
    """How the pictures are encoded and, where that is not one way for all, the pictures encoded anew.

    A picture that is stored otherwise than the rest of its row gives itself away. Raises ValueError for
    pictures of several sizes.
    """
    forms = {_form(image) for image in images}
    if len(forms) == 1 and all(_plain(image) for image in images):
        return forms.pop(), images
    pictures = [upright(image) for image in images]
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        listed = " and ".join(f"{w} x {h}" for w, h in sorted(sizes)[:2])
        raise ValueError(f"{name}: found images of {len(sizes)} sizes ({listed}), expected one size")
    encoded = [jpeg(picture) for picture in pictures]
    return _form(encoded[0]), encoded


def _form(data: bytes) -> str:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return f"{image.width} x {image.height} {encoding_of(image, data)}"


def _plain(data: bytes) -> bool:
    """Whether every loader shows the picture alike: it is upright and has no alpha channel."""
    header = read_header(data)
    return header.orientation == 1 and header.mode in ("RGB", "L", "P")


def jpeg(picture: Image.Image) -> bytes:
    """Encode an RGB picture, always in the same way."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
