"""vLLM's front end prepares a prompt once for the group of its samples: the inputs stay the same."""

from typing import Any

import pytest

pytest.importorskip("verl")
pytest.importorskip("vllm")
import torch
from PIL import Image
from transformers import AutoTokenizer
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import preprocess
from vllm.renderers import renderer_from_config

from tpru_verl.demo.run import CHECKPOINT
from tpru_verl.plugin import sharing

Preprocessor: Any = preprocess.InputPreprocessor
STOCK = Preprocessor.preprocess
if STOCK.__name__ == "shared_preprocess":  # the plugin has been at work in this process
    STOCK = STOCK.__closure__[0].cell_contents


def prompts() -> list[dict[str, Any]]:
    """Two requests for one prompt of three pictures, as veRL's server makes them: they share the list."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    images = [Image.effect_noise((56, 56), spread).convert("RGB") for spread in (10, 40, 90)]
    tokens = tokenizer("Order: " + 3 * "<|vision_start|><|image_pad|><|vision_end|>")["input_ids"]
    return [{"prompt_token_ids": tokens, "multi_modal_data": {"image": images}} for _ in range(2)]


def values(inputs: dict[str, Any]) -> tuple[Any, ...]:
    pixels = [item and item.get_data()["pixel_values"] for item in inputs["mm_kwargs"]["image"]]
    return inputs["prompt_token_ids"], inputs["mm_hashes"], inputs["mm_placeholders"], pixels


@pytest.mark.parametrize("gigabytes", [4, 0])
def test_a_group_has_the_inputs_of_requests_apart(gigabytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = EngineArgs(str(CHECKPOINT), mm_processor_cache_gb=gigabytes, enforce_eager=True)
    config = args.create_engine_config()
    monkeypatch.setattr(Preprocessor, "preprocess", STOCK)
    apart, ours = (Preprocessor(config, renderer_from_config(config)) for _ in range(2))
    first, second = prompts()
    stock = [values(apart.preprocess(one)) for one in (first, second)]

    sharing.process_group_once(preprocess)
    calls: list[int] = []
    process = ours.renderer._process_multimodal
    monkeypatch.setattr(
        ours.renderer, "_process_multimodal", lambda *a, **k: calls.append(1) or process(*a, **k)
    )
    with sharing._processed_once(first["multi_modal_data"]["image"]):
        found = [values(ours.preprocess(one)) for one in (first, second)]
        assert len(calls) == 1
        if gigabytes:  # lost by the cache in between: the pixels have to come again
            ours.renderer.mm_processor_cache.clear_cache()
            assert values(ours.preprocess(second))[-1][0] is not None
    for one, other in zip(stock, found, strict=True):
        assert one[:3] == other[:3]
        for a, b in zip(one[3], other[3], strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
    assert (found[1][3][0] is None) == bool(gigabytes)
