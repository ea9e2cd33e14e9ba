"""The vision tower encodes each distinct image once: outputs and gradients are those of the stock tower."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

pytest.importorskip("verl")
import torch
from transformers import AutoConfig

from tpru_verl.plugin.vision import TOWERS, distinct_images, share_images

GRIDS = [[1, 4, 4], [1, 8, 4], [1, 4, 8], [1, 4, 4]]
SMALL: dict[str, Any] = {
    **{"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 48},
    **{"window_size": 56, "fullatt_block_indexes": [1]},
    **{"deepstack_visual_indexes": [0], "num_position_embeddings": 64},
    **{"embed_dim": 32, "mlp_ratio": 1},  # Qwen2-VL's names
}
COPIES = [0, 1, 0, 2, 1, 3, 3, 0]  # images 0 and 3 are of one size, and differ


def tower(name: str) -> tuple[Any, Callable, Callable]:
    """A small tower, its stock forward and ours."""
    modeling = import_module(name)
    kind = getattr(modeling, TOWERS[name])
    stock_config = AutoConfig.for_model(name.split(".")[2]).vision_config
    config = type(stock_config)(**{key: SMALL[key] for key in SMALL if hasattr(stock_config, key)})
    stock = kind.forward
    if stock.__module__ != name:  # the plugin has been at work in this process
        stock = stock.__closure__[0].cell_contents
    kind.forward = stock
    share_images(modeling)
    ours = kind.forward
    torch.manual_seed(0)
    return kind(config), stock, ours


def batch(values: int, copies: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and grids of the images named by `copies`."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(t * h * w, values, generator=generator) for t, h, w in GRIDS]
    return torch.cat([images[i] for i in copies]), torch.tensor([GRIDS[i] for i in copies])


def tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize("name", TOWERS)
def test_outputs_and_gradients_are_the_stock_towers(name: str) -> None:
    module, stock, ours = tower(name)
    values = module.patch_embed.proj.weight[0].numel()
    pixels, grids = batch(values, COPIES)
    results = []
    for forward in (stock, ours):
        module.zero_grad()
        found = tensors(forward(module, pixels, grids))
        torch.manual_seed(2)
        torch.stack([(tensor * torch.randn_like(tensor)).sum() for tensor in found]).sum().backward()
        results.append((found, [p.grad.clone() for p in module.parameters() if p.grad is not None]))
    for one, other in zip(*results, strict=True):
        assert len(one) == len(other)
        assert len(one) >= 2
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_the_tower_sees_each_image_once(name: str) -> None:
    module, _, ours = tower(name)
    seen: list[int] = []
    module.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    pixels, grids = batch(module.patch_embed.proj.weight[0].numel(), COPIES)
    ours(module, pixels, grids)
    assert seen == [16 + 32 + 32 + 16]


def test_distinct_images() -> None:
    pixels, grids = batch(40, COPIES)
    assert distinct_images(pixels, grids) == ([0, 1, 3, 5], [0, 1, 0, 2, 1, 3, 3, 0])
    assert distinct_images(*batch(40, [0, 1, 2, 3])) is None
    # Rows of pixels in another shape are another image.
    assert distinct_images(pixels[:32].repeat(2, 1), torch.tensor([[1, 8, 4], [1, 4, 8]])) is None


def test_a_difference_that_the_marks_miss() -> None:
    pixels, grids = batch(40, [0, 0, 0])
    pixels[20, 1] += 1
    assert distinct_images(pixels, grids) is None
