"""Cuts edges off the frames of a source, and covers boxes: burnt-in clocks, status bars, captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from PIL import Image

from tpru_verl.builder.clips import Frame, SourceItem
from tpru_verl.builder.pictures import in_common_format, jpeg
from tpru_verl.data.images import problem_of, upright
from tpru_verl.terminal import OptionError

SMALLEST = 28  # pixels of a side that have to be left
GREY = (128, 128, 128)

Box = tuple[float, float, float, float]  # left, top, right, bottom: pixels, or shares of the side up to 1


@dataclass(frozen=True)
class Cover:
    """What is cut off at each edge, and boxes that become grey, measured from the left and the top."""

    crop: Box | None = None
    masks: tuple[Box, ...] = ()

    @classmethod
    def read(cls, crop: str | None, masks: Sequence[str]) -> Cover:
        """What the options `--crop` and `--mask` say. Raises ValueError, which names the option."""
        return cls(_box(crop, "--crop") if crop else None, tuple(_box(mask, "--mask") for mask in masks))

    def applied(self, data: bytes) -> bytes:
        """The picture as JPEG, masks first.

        Raises ValueError for a picture that is unfit for training, and where too little of it would be left.
        """
        if problem := problem_of(data):  # encoded anew, it would look sound
            raise ValueError(problem)
        picture = upright(data)
        width, height = picture.size
        for mask in self.masks:
            picture.paste(GREY, _pixels(mask, picture, whole=True))
        if self.crop:
            left, top, right, bottom = _pixels(self.crop, picture)
            right, bottom = width - right, height - bottom
            if right - left < SMALLEST or bottom - top < SMALLEST:
                found = f"found {_text(self.crop)} for a picture of {width} x {height}"
                raise ValueError(f"--crop: {found}, expected to leave {SMALLEST} pixels of each side")
            picture = picture.crop((left, top, right, bottom))
        return jpeg(picture)


def _pixels(box: Box, picture: Image.Image, *, whole: bool = False) -> tuple[int, int, int, int]:
    """The numbers of a box in pixels; 1 is one pixel or, with `whole`, the whole side."""
    sides = (*picture.size, *picture.size)
    left, top, right, bottom = (
        round(value * side if value < 1 or (whole and value == 1) else value)
        for value, side in zip(box, sides, strict=True)
    )
    return left, top, right, bottom


def _text(box: Box) -> str:
    return ",".join(f"{value:g}" for value in box)


def _box(text: str, option: str) -> Box:
    """Four numbers, separated by commas. Raises ValueError, which names the option."""
    try:
        left, top, right, bottom = (float(number) for number in text.split(","))
    except ValueError:
        left = top = right = bottom = -1.0
    if not all(0 <= number < 1e6 for number in (left, top, right, bottom)):
        expected = "four numbers LEFT,TOP,RIGHT,BOTTOM from 0: pixels, or shares below 1"
        raise OptionError(f"{option}: found {text!r}, expected {expected}")
    if option == "--mask" and (right <= left or bottom <= top):
        raise OptionError(f"{option}: found {text!r}, expected RIGHT over LEFT and BOTTOM over TOP")
    return left, top, right, bottom


@dataclass(frozen=True)
class Covered:
    """An item whose frames are cut and covered. All else is as in the item itself."""

    usual_frames: ClassVar[int] = 16
    item: SourceItem
    cover: Cover

    @property
    def id(self) -> str:
        return self.item.id

    @property
    def scene(self) -> str:
        return self.item.scene

    @property
    def group(self) -> str:
        return self.item.group

    def files(self) -> Sequence[Path]:
        return self.item.files()

    def frames(self) -> Iterator[Frame]:
        for frame in self.item.frames():
            try:
                whole = in_common_format(frame.data)
                data = self.cover.applied(whole)
            except ValueError as error:
                raise ValueError(f"{self.id}: {frame.place}: {error}") from error
            # A test set shows whole pictures: a clip is compared with it before they are covered, too.
            yield replace(frame, data=data, uncovered=whole)
