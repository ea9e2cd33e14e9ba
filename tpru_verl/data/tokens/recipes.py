"""How the recipes show a prompt to a model: what `tpru data` counts with where the user says nothing else.

Counts that `tpru data prepare --model` stores are of use to a run with equal settings alone. A test composes
the recipes and compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tpru_verl import hub
from tpru_verl.data.tokens.pictures import patch_and_factor
from tpru_verl.data.tokens.pixels import MAX, MIN, Bounds
from tpru_verl.models import DEFAULT, family_of

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from tpru_verl.data.tokens.prompts import PromptCounter

# Least and most pixels of an image, by the side of a visual token: 21 to 47 tokens.
_BOUNDS = {DEFAULT.token_side: (MIN, MAX), 32: (21504, 48128)}


def bounds_of(side: int, least: int | None = None, most: int | None = None) -> Bounds:
    """The bounds of the recipes for visual tokens of that side, but for what is given. Raises ValueError."""
    low, high = _BOUNDS.get(side, (MIN, MAX))
    return Bounds(low if least is None else least, high if most is None else most, side)


def load_processor(model: str) -> ProcessorMixin:
    """The processor of `--model`. Raises ValueError without transformers, FileNotFoundError for no model."""
    try:
        from transformers import AutoProcessor
    except ImportError as error:
        raise ValueError(
            f"--model: counting tokens needs `pip install transformers torch`: {error}"
        ) from error
    if why := hub.missing(model):
        raise FileNotFoundError(f"--model {model}: {why}; download it, and give its folder")
    return AutoProcessor.from_pretrained(model)


def counter_of(
    model: str, template: str, least: int | None = None, most: int | None = None
) -> tuple[PromptCounter, Bounds]:
    """Counts prompts as the recipe of the model shows them, and the bounds of its images.

    Raises as `load_processor`, `bounds_of` and `PromptCounter`.
    """
    from tpru_verl.data.tokens.prompts import PromptCounter

    processor = load_processor(model)
    bounds = bounds_of(patch_and_factor(processor)[1], least, most)
    pixels = {"min_pixels": bounds.least, "max_pixels": bounds.most}
    # Processors of newer families enlarge an image to at least 65,536 pixels, unless they are told.
    told = pixels if bounds.factor != DEFAULT.token_side else {}
    family = family_of(model)
    chat: Mapping[str, object] = {"enable_thinking": False} if family and family.opens_think else {}
    return PromptCounter(processor, template, pixels, processor_kwargs=told, chat_kwargs=chat), bounds
