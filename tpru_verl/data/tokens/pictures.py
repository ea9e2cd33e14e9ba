"""Whether a model would see the images of a run: the bounds on their pixels, and what its processor makes."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from PIL import Image

from tpru_verl.models import DEFAULT, read_config
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    from transformers import ProcessorMixin

_PIXELS = ("min_pixels", "max_pixels")
_EDGES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


class PixelBounds(NamedTuple):
    """`pixels`: `min_pixels` and `max_pixels` of an image, as far as they are set; `warning`: "" for none."""

    pixels: dict[str, int]
    warning: str = ""


def patch_and_factor(processor: object) -> tuple[int, int]:
    """Sides, in pixels, of a patch and of a visual token (merged patches)."""
    own = getattr(processor, "image_processor", None)
    patch = int(getattr(own, "patch_size", DEFAULT.patch))
    return patch, patch * int(getattr(own, "merge_size", DEFAULT.merge))


def pixel_bounds(
    data: Mapping[str, object], processor: object, told: Mapping[str, object] | None = None
) -> PixelBounds:
    """The bounds of `data.min_pixels` and `data.max_pixels`; `told`: `data.mm_processor_kwargs`.

    qwen_vl_utils resizes to these; the model's processor then resizes to its own bounds once more, in the
    trainer and in vLLM, so bounds outside of the processor's would be promised and not kept. Raises
    ValueError for bounds that cannot hold.
    """
    bounds = {key: int(cast(int, data[key])) for key in _PIXELS if data.get(key) is not None}
    token = patch_and_factor(processor)[1] ** 2
    for key, value in bounds.items():
        if value < token:
            raise ValueError(f"data.{key}: found {value}, expected {token} (one visual token) or more")
    low, high = bounds.get("min_pixels"), bounds.get("max_pixels")
    if low is not None and high is not None and low > high:
        raise ValueError(f"data.min_pixels: found {low}, expected at most data.max_pixels={high}")
    least, most = _processor_bounds(processor, told or {})
    carried = "set the processor's own by data.mm_processor_kwargs.min_pixels and .max_pixels"
    if (least and high and high < least) or (most and low and low > most):
        raise ValueError(
            f"data.min_pixels, data.max_pixels: found {low} to {high}, expected bounds that meet {least} to "
            f"{most} of the model's processor, which resizes once more; move them, or {carried}"
        )
    if (least and low and low < least) or (most and high and high > most):
        said = f"data.min_pixels..max_pixels={low}..{high}: the processor's own {least}..{most} hold"
        return PixelBounds(bounds, f"{said}; {carried}")
    return PixelBounds(bounds)


def _processor_bounds(processor: object, told: Mapping[str, object]) -> tuple[int | None, int | None]:
    """The least and most pixels that the processor itself resizes to. Raises ValueError for half a pair.

    Qwen's processors take a pair from the call. One bound without the other is ignored by transformers 5.10,
    and used by 5.24.
    """
    own = getattr(processor, "image_processor", None)
    size = told.get("size") or getattr(own, "size", None)
    least, most = (_edge(size, _EDGES[key]) or getattr(own, key, None) for key in _PIXELS)
    given = {key: told[key] for key in _PIXELS if told.get(key) is not None}
    if not given:
        return least, most
    if len(given) == 1:
        (found,) = given
        raise ValueError(
            f"data.mm_processor_kwargs: found {found} alone, which transformers 5.10 ignores; expected both "
            "min_pixels and max_pixels"
        )
    for key, value in given.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"data.mm_processor_kwargs.{key}: found {value!r}, expected a whole number > 0")
    least, most = cast("tuple[int, int]", (given["min_pixels"], given["max_pixels"]))
    if least > most:
        raise ValueError(
            f"data.mm_processor_kwargs.min_pixels: found {least}, expected at most max_pixels={most}"
        )
    return least, most


def named_processor(folder: str) -> SimpleNamespace:
    """The attributes of a model's processor that decide on pixels, read from its files without transformers.

    Raises ValueError for a file that is not readable.
    """
    whole = read_config(folder, "processor_config.json") or {}
    own = whole.get("image_processor") or read_config(folder, "preprocessor_config.json")
    return SimpleNamespace(image_processor=SimpleNamespace(**cast("dict[str, Any]", own or {})))


def _edge(size: object, key: str) -> int | None:
    value = size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)
    return int(value) if value else None


def blindness(
    processor: ProcessorMixin,
    *,
    processor_kwargs: Mapping[str, object] | None = None,
    chat_kwargs: Mapping[str, object] | None = None,
) -> str:
    """Why images would not reach the model through this processor; "" where they do.

    A black and a white image must differ in what the processor makes of them, as veRL calls it, and the chat
    template must show their place. Neither transformers nor veRL raises an error where they do not.
    """
    kind = type(processor).__name__
    chats: list[Any] = [[{"role": "user", "content": content}] for content in (_WITH, _WITHOUT)]
    render: Any = processor.apply_chat_template
    options = {**(chat_kwargs or {}), "add_generation_prompt": True, "tokenize": False}
    try:
        shown, hidden = (render(chat, **options) for chat in chats)
        if shown == hidden:
            return f"the chat template of {kind} leaves images out of the prompt"
        black, white = (_features(processor, shown, image, processor_kwargs or {}) for image in (0, 255))
    except Exception as error:  # of processors of all kinds, and of templates
        return f"{kind} cannot prepare a sample image ({type(error).__name__}: {line_of(error)})"
    if all(np.array_equal(black[key], white[key]) for key in black):
        return f"{kind} makes the same of a black and a white image: found {', '.join(sorted(black))}"
    return ""


_TEXT = {"type": "text", "text": "Which?"}
_WITHOUT, _WITH = [_TEXT], [{"type": "image", "image": ""}, _TEXT]


def _features(
    processor: ProcessorMixin, text: str, shade: int, kwargs: Mapping[str, object]
) -> dict[str, np.ndarray]:
    image = Image.new("RGB", (64, 64), (shade,) * 3)
    given: dict[str, Any] = {"return_tensors": "pt", **kwargs}
    made = processor(text=[text], images=[image], videos=None, **given)
    tokens = ("input_ids", "attention_mask")
    return {key: np.asarray(value) for key, value in made.items() if key not in tokens}
