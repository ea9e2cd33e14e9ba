"""Visual tokens of an image, by the rules of transformers' own processors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

from tpru_verl.models import FAMILIES, IMAGE_PROCESSORS, visual_tokens

Size = tuple[int, int]  # width, height in pixels
Conversation = list[dict[str, object]]  # messages of role and content, the content cut into parts

_PROCESSORS = tuple(dict.fromkeys(family.processor for family in FAMILIES.values()))


class UnsupportedProcessorError(ValueError):
    """The sizes of images do not tell how many tokens this processor makes of them."""


class ImageProcessor(Protocol):
    """The attributes of Qwen-VL's image processors that are read here."""

    @property
    def patch_size(self) -> int: ...
    @property
    def merge_size(self) -> int: ...


class Processor(Protocol):
    """The attributes of transformers' processors that are read here."""

    image_processor: ImageProcessor
    tokenizer: object
    chat_template: object
    image_token: str

    def apply_chat_template(
        self,
        conversation: list[Conversation],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
        **kwargs: object,
    ) -> list[str]: ...

    def __call__(self, **kwargs: object) -> Mapping[str, Sequence[Sequence[int]]]: ...


def count_image_tokens(
    width: int,
    height: int,
    image_processor: ImageProcessor,
    *,
    pixel_bounds: Mapping[str, int],
    processor_kwargs: Mapping[str, object] | None = None,
) -> int:
    """Visual tokens of an image that is stored with `width` x `height` pixels.

    `pixel_bounds` holds the `min_pixels` and `max_pixels` of the message that are set. `processor_kwargs`
    holds both or none of them, as veRL hands them to the processor (`data.mm_processor_kwargs`). Raises
    ValueError for sides beyond 1 : 200 and for an image that max_pixels makes vanish, as the two packages do.
    """
    from qwen_vl_utils import vision_process

    patch = int(image_processor.patch_size)
    rows, columns = vision_process.smart_resize(
        height,
        width,
        patch * vision_process.SPATIAL_MERGE_SIZE,
        min_pixels=pixel_bounds.get("min_pixels"),
        max_pixels=pixel_bounds.get("max_pixels"),
    )
    if min(rows, columns) <= 0:
        raise ValueError(f"found {width} x {height} pixels, expected sides that max_pixels leaves some of")
    return processor_tokens(columns, rows, image_processor, processor_kwargs)


def processor_tokens(
    width: int,
    height: int,
    image_processor: ImageProcessor,
    processor_kwargs: Mapping[str, object] | None = None,
) -> int:
    """Visual tokens of an image that reaches the processor with `width` x `height` pixels.

    Raises ValueError as the processor's resize does, and UnsupportedProcessorError for a processor that does
    not name its bounds.
    """
    patch, merge = int(image_processor.patch_size), int(image_processor.merge_size)
    low, high = _processor_bounds(image_processor, processor_kwargs or {})
    resize = _own_resize(image_processor)
    rows, columns = resize(height, width, factor=patch * merge, min_pixels=low, max_pixels=high)
    return visual_tokens(columns, rows, patch, merge)


def _own_resize(image_processor: ImageProcessor) -> Callable[..., Size]:
    """`smart_resize` of the processor's module: from height and width to height and width."""
    return sys.modules[type(image_processor).__module__].smart_resize


def _processor_bounds(image_processor: ImageProcessor, told: Mapping[str, object]) -> tuple[int, int]:
    """The least and most pixels that the processor itself resizes to. Raises UnsupportedProcessorError."""
    if told:
        if set(told) != {"min_pixels", "max_pixels"} or None in told.values():
            found = ", ".join(sorted(map(str, told)))
            raise UnsupportedProcessorError(
                f"mm_processor_kwargs: found {found}, expected min_pixels, max_pixels"
            )
        return int(cast(int, told["min_pixels"])), int(cast(int, told["max_pixels"]))
    size = cast("Mapping[str, int | None]", getattr(image_processor, "size", {}))
    low, high = size.get("shortest_edge"), size.get("longest_edge")
    if not low or not high:
        raise UnsupportedProcessorError(f"size: found {size}, expected shortest_edge and longest_edge")
    return int(low), int(high)


def refuse_unknown(processor: Processor) -> None:
    """Raise UnsupportedProcessorError for a class of no known family; a subclass may count otherwise."""
    own = getattr(processor, "image_processor", None)
    for found, expected in ((processor, _PROCESSORS), (own, IMAGE_PROCESSORS)):
        kind = type(found)
        if kind.__name__ not in expected or not kind.__module__.startswith("transformers.models."):
            raise UnsupportedProcessorError(
                f"processor: found {kind.__name__}, expected {', '.join(expected)}"
            )
    if not getattr(own, "do_resize", True):
        raise UnsupportedProcessorError("image_processor.do_resize: found False, expected True")
    if not hasattr(processor.tokenizer, "backend_tokenizer"):
        kind = type(processor.tokenizer)
        raise UnsupportedProcessorError(f"tokenizer: found {kind.__name__}, expected one of `tokenizers`")
