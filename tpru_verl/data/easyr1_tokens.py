"""How many tokens a prompt has in EasyR1, told as `tokens` tells it for veRL: no image is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from tpru_verl.data.tokens.processors import Conversation, Size, processor_tokens
from tpru_verl.data.tokens.prompts import PromptCounter

if TYPE_CHECKING:
    from tpru_verl.sample import Task


def easyr1_size(width: int, height: int, min_pixels: int | None, max_pixels: int | None) -> Size:
    """Pixels of an image after `verl.utils.dataset.process_image` (0.3.2 and head): area first, sides rounded
    down, so that the bounds are met but for rounding. Raises ValueError where a side vanishes."""
    for bound, beyond in ((max_pixels, 1), (min_pixels, -1)):
        if bound is not None and (width * height - bound) * beyond > 0:
            factor = math.sqrt(bound / (width * height))
            width, height = int(width * factor), int(height * factor)
            if not width or not height:
                raise ValueError(
                    f"found {width} x {height} pixels, expected sides that max_pixels leaves some of"
                )
    return width, height


class EasyR1Counter(PromptCounter):
    """As `PromptCounter`, with EasyR1's resize and without the task, which never reaches its template."""

    def conversation(self, problem: str, task: Task | None) -> Conversation:
        return super().conversation(problem, None)

    def _image_tokens(self, width: int, height: int) -> int:
        return processor_tokens(*self._size(width, height), self._processor.image_processor)

    def _size(self, width: int, height: int) -> Size:
        return easyr1_size(
            width, height, self.pixel_bounds.get("min_pixels"), self.pixel_bounds.get("max_pixels")
        )

    def _whole(self, conversation: Conversation, images: Sequence[Image.Image]) -> int:
        resized = [image.resize(self._size(*image.size)) for image in images]
        text = self._chats([conversation])
        return len(self._processor(text=text, images=resized)["input_ids"][0])
