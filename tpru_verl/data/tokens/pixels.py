"""Prepares an image as training shows it to the model: transparent parts are white, and the size is bounded.

The arithmetic is that of qwen_vl_utils 0.0.14 (`to_rgb`, `smart_resize`, `fetch_image`), through which veRL
sends every image; a test compares the two. It stands here a second time because qwen_vl_utils needs torch,
which neither `tpru data stats` nor the evaluation of an endpoint needs.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass

from PIL import Image

from tpru_verl.data.images import FORMATS, MAX_PIXELS, MAX_RATIO, on_white
from tpru_verl.models import DEFAULT
from tpru_verl.terminal import OptionError

MIN, MAX = 16384, 36864  # of the recipes: 21 to 47 visual tokens at 28 x 28 pixels each


@dataclass(frozen=True)
class Bounds:
    """The least and most pixels of an image, and the side of a visual token in pixels (patch x merge)."""

    least: int = MIN
    most: int = MAX
    factor: int = DEFAULT.token_side

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            raise OptionError(
                f"min_pixels, max_pixels: found {self.least}, {self.most}, expected 0 < min <= max"
            )
        if self.most < self.factor**2:
            raise OptionError(f"max_pixels: found {self.most}, expected {self.factor**2} (one token) or more")

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing. Raises ValueError for sides that no bound can hold."""
        if max(width, height) > MAX_RATIO * min(width, height):
            raise ValueError(f"found {width} x {height} pixels, expected sides within 1 : {MAX_RATIO}")
        sides = [max(self.factor, round(side / self.factor) * self.factor) for side in (width, height)]
        area = width * height
        if math.prod(sides) > self.most:
            beta = math.sqrt(area / self.most)
            sides = [math.floor(side / beta / self.factor) * self.factor for side in (width, height)]
        elif math.prod(sides) < self.least:
            beta = math.sqrt(self.least / area)
            sides = [math.ceil(side * beta / self.factor) * self.factor for side in (width, height)]
        if min(sides) <= 0:
            raise ValueError(f"found {width} x {height} pixels, too narrow for max_pixels={self.most}")
        return sides[0], sides[1]

    def tokens(self, width: int, height: int) -> int:
        """Visual tokens of an image of that size. Raises ValueError as `target`."""
        return math.prod(self.target(width, height)) // self.factor**2

    def prepared(self, data: bytes) -> Image.Image:
        """Decode and resize. Raises ValueError for data that are not one whole image."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is stricter
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    if image.width * image.height > MAX_PIXELS:
                        raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS}")
                    size = self.target(*image.size)
                    return on_white(image).convert("RGB").resize(size)
        except Exception as error:  # Pillow's readers raise many kinds
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"found an image that can't be decoded ({reason}; {len(data)} bytes)") from error


def png(image: Image.Image) -> bytes:
    """Encode without loss, so that an endpoint sees the same pixels as a local engine."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
