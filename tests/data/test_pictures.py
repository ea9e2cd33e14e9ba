"""Whether a model would see the images: bounds of pixels, and a look at what a real processor makes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tpru_verl.data.tokens.pictures import blindness, named_processor, pixel_bounds

QWEN3 = {"shortest_edge": 65536, "longest_edge": 16777216}


def made(size: dict[str, int] | None = None, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(image_processor=SimpleNamespace(patch_size=16, merge_size=2, size=size, **more))


@pytest.mark.parametrize(
    ("data", "told", "message"),
    [
        ({"min_pixels": 21504, "max_pixels": 48128}, {}, "expected bounds that meet 65536 to 16777216"),
        ({}, {"max_pixels": 48128}, "found max_pixels alone, which transformers 5.10 ignores"),
        ({}, {"min_pixels": 48128, "max_pixels": None}, "found min_pixels alone, which transf"),
        ({}, {"min_pixels": 48128, "max_pixels": 21504}, "found 48128, expected at most max_pixels=21504"),
        ({}, {"min_pixels": "1", "max_pixels": 21504}, "min_pixels: found '1', expected a whole number > 0"),
        ({"max_pixels": 1000}, {}, "found 1000, expected 1024 .one visual token. or more"),
    ],
)
def test_bounds_that_would_not_be_kept(data: dict[str, int], told: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixel_bounds(data, made(QWEN3), told)


@pytest.mark.parametrize("processor", [made(QWEN3), made(min_pixels=65536, max_pixels=16777216)])
def test_bounds_that_are_kept_and_those_that_are_cut(processor: Any) -> None:
    both = {"min_pixels": 21504, "max_pixels": 48128}
    assert pixel_bounds(both, processor, both) == (both, "")
    told = {"size": {"shortest_edge": 21504, "longest_edge": 48128}}
    assert pixel_bounds(both, processor, told) == (both, "")
    bounds, warning = pixel_bounds({"min_pixels": 1024, "max_pixels": 90000}, processor)
    assert bounds == {"min_pixels": 1024, "max_pixels": 90000}
    assert "the processor's own 65536..16777216 hold; set the processor's own by data.mm_proc" in warning


def test_the_files_of_a_model_have_what_its_processor_has(checkpoint: Path) -> None:
    from transformers import AutoProcessor

    both = {"min_pixels": 3136, "max_pixels": 3136}
    real = AutoProcessor.from_pretrained(checkpoint)
    for processor in (real, named_processor(str(checkpoint))):
        assert pixel_bounds(both, processor) == (both, "")
        with pytest.raises(ValueError, match="expected bounds that meet 3136 to 3136"):
            pixel_bounds({"min_pixels": 16384}, processor)


def test_a_processor_shows_its_images_or_says_why_not(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint)
    kind = type(processor)
    assert blindness(processor) == ""
    assert "cannot prepare a sample image" in blindness(processor, processor_kwargs={"max_pixels": "9"})
    call = kind.__call__

    def without_pixels(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = call(self, *args, **kwargs)
        del found["pixel_values"]
        return found

    monkeypatch.setattr(kind, "__call__", without_pixels)
    assert "makes the same of a black and a white image: found image_grid_thw" in blindness(processor)
    processor.chat_template = "{{ messages[0].content[-1].text }}"
    assert blindness(processor) == f"the chat template of {kind.__name__} leaves images out of the prompt"
