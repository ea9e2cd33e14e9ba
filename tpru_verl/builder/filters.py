"""Which frames can carry a question: not blank, not blurred, and visibly different from the one before.

Thresholds depend on the source: an arm before a static camera changes few pixels, a cut changes all. The
distribution of what was measured is in the manifest, for choosing them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tpru_verl.builder.clips import GREY, MAX_COMPARED, Clip, Counts, Frame, Item
from tpru_verl.data.audit.rules import encoding_of
from tpru_verl.data.images import (
    FORMATS,
    HASHED,
    hash_of,
    problem_of,
    read_header,
    scan,
    thumbnail,
    upright,
)

LEVEL = 12  # grey levels of 255 from which a pixel counts as changed: above the noise of JPEG
QUALITY = 92  # of pictures that have to be encoded anew
_BITS = np.array([value.bit_count() for value in range(256)], np.uint8)

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Filters:
    """The thresholds. A threshold of 0 turns its filter off; the very same frame is never kept twice."""

    min_contrast: float = 4.0  # standard deviation of grey levels; below it a frame is blank
    min_sharpness: float = 12.0  # variance of the Laplacian of 128 pixels; below it a frame is blurred
    min_bits: int = 4  # of 256 of the perceptual hash; below it a frame is a duplicate of the one before
    min_change: float = 0.005  # share of pixels that change; below it the order of two frames is not visible
    max_bits: int = (
        120  # of 256: frames of other clips farther from the right one are too easy; chance is 128
    )


@dataclass(frozen=True)
class Look:
    """What is measured of a frame."""

    hash: NDArray[np.uint8]  # (HASH_BYTES,)
    grey: Grey  # (GREY, GREY)
    leak_hash: np.uint64 | None
    contrast: float
    sharpness: float


def look_at(data: bytes, *, leak_hash: bool = False) -> Look:
    """Measure a picture. Raises ValueError for one that cannot be decoded."""
    import imagehash

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # Of a JPEG, brightness alone, at no more than the scale that is looked at.
            image.draft(
                "L", (image.width * HASHED // max(image.size), image.height * HASHED // max(image.size))
            )
            small = image.convert("L")
        small.thumbnail((HASHED, HASHED), Image.Resampling.BOX)
        leak = hash_of(thumbnail(data, HASHED)) if leak_hash else None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"found an image that can't be decoded ({error}), expected a whole one") from error
    bits: NDArray[np.bool_] = imagehash.phash(small, 16).hash
    grey = np.asarray(small.resize((GREY, GREY), Image.Resampling.BOX))
    pixels = np.asarray(small, np.float32)
    return Look(np.packbits(bits.ravel()), grey, leak, float(grey.std()), sharpness(pixels))


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


@dataclass
class _Run:
    """Frames that passed, on their way to a clip."""

    frames: list[Frame]
    looks: list[Look]


def clips_of(
    item: Item, filters: Filters, counts: Counts, *, shortest: int, longest: int, leak_hash: bool = False
) -> Iterator[tuple[Clip, list[bytes]]]:
    """Clips of `shortest` to `longest` frames that pass the filters, with their pictures.

    What does not pass is counted in `counts`, and listed there where a whole item is lost. Raises as
    `item.frames` for what cannot be read.
    """
    run, number, found = _Run([], []), 0, 0
    before = dict(counts.dropped_frames)
    for frame in item.frames():
        counts.frames += 1
        found += 1
        look = _look(item, frame, leak_hash)
        if reason := _reason(look, run, filters, counts):
            counts.dropped_frames[reason] = counts.dropped_frames.get(reason, 0) + 1
            continue
        if len(run.frames) == longest:
            yield _clip(item, number, run, counts)
            run, number = _Run([], []), number + 1
        run.frames.append(frame)
        run.looks.append(look)
    if len(run.frames) >= shortest:
        yield _clip(item, number, run, counts)
    elif number == 0:
        lost = {name: n - before.get(name, 0) for name, n in counts.dropped_frames.items()}
        listed = ", ".join(f"{n} {name}" for name, n in sorted(lost.items()) if n)
        reason = "too few frames" if found < shortest else max(lost, key=lambda name: lost[name])
        detail = f"found {len(run.frames)} usable of {found} frames{f' ({listed})' * bool(listed)}"
        counts.dropped.append(
            {"id": item.id, "reason": reason, "detail": f"{detail}, expected at least {shortest}"}
        )
    else:
        counts.dropped_frames["left over"] = counts.dropped_frames.get("left over", 0) + len(run.frames)


def _look(item: Item, frame: Frame, leak_hash: bool) -> Look:
    if problem := problem_of(frame.data):
        raise ValueError(f"{item.id}: frame {frame.index}: {problem}")
    try:
        return look_at(frame.data, leak_hash=leak_hash)
    except ValueError as error:
        raise ValueError(f"{item.id}: frame {frame.index}: {error}") from error


def _reason(look: Look, run: _Run, filters: Filters, counts: Counts) -> str | None:
    """Why a frame is left out."""
    if look.contrast < filters.min_contrast:
        return "blank"
    if look.sharpness < filters.min_sharpness:
        return "blurred"
    if not run.looks:
        return None
    last = run.looks[-1]
    bits = int(bits_between(look.hash, last.hash))
    change = float(change_between(look.grey, last.grey))
    if len(counts.bits) < MAX_COMPARED:
        counts.bits.append(bits)
        counts.change.append(round(change, 5))
    if change == 0:
        return "frozen"
    if change < filters.min_change:
        return "too small a change"
    return "duplicate" if bits < filters.min_bits else None


def _clip(item: Item, number: int, run: _Run, counts: Counts) -> tuple[Clip, list[bytes]]:
    frames, looks = run.frames, run.looks
    form, images = alike([frame.data for frame in frames], item.id)
    counts.clips += 1
    counts.kept_frames += len(frames)
    clip = Clip(
        id=f"{item.id}#{number}" if number else item.id,
        scene=item.scene,
        group=item.group,
        about=frames[0].about,
        form=form,
        index=[frame.index for frame in frames],
        time=[frame.time for frame in frames],
        text=[frame.text for frame in frames],
        hash=np.stack([look.hash for look in looks]),
        grey=np.stack([look.grey for look in looks]),
        leak_hash=np.array([look.leak_hash for look in looks if look.leak_hash is not None], np.uint64),
        size=[len(image) for image in images],
    )
    return clip, images


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
    """Whether every loader shows the picture as it is: upright, and without an alpha channel."""
    plain = scan(data)
    if plain and not plain.exif and plain.mode in ("RGB", "L", "P"):
        return True
    header = read_header(data)
    return header.orientation == 1 and header.mode in ("RGB", "L", "P")


def jpeg(picture: Image.Image) -> bytes:
    """Encode an RGB picture, always in the same way."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
