"""Patches of the vision towers: outputs and gradients are those of the stock tower, with less work."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

pytest.importorskip("verl")
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tpru_verl.plugin.vision import (
    TOWERS,
    attend_within,
    distinct_images,
    parts_of,
    share_images,
    vision_tower_without_loops,
)

GRIDS = [[1, 4, 4], [1, 8, 4], [1, 4, 8], [1, 4, 4]]
SMALL: dict[str, Any] = {
    **{"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 48},
    **{"window_size": 56, "fullatt_block_indexes": [1]},
    **{"deepstack_visual_indexes": [0], "num_position_embeddings": 64},
    **{"embed_dim": 32, "mlp_ratio": 1},  # Qwen2-VL's names
}
COPIES = [0, 1, 0, 2, 1, 3, 3, 0]  # images 0 and 3 are of one size, and differ


@pytest.fixture(autouse=True, scope="module")
def restored() -> Any:
    """Other tests of this process find the classes as they were."""
    ends = ("VisionAttention", "PatchEmbed", *TOWERS.values())
    every = [vars(import_module(name)).items() for name in TOWERS]
    kept = [(value, value.forward) for names in every for key, value in names if key.endswith(ends)]
    yield
    for kind, forward in kept:
        kind.forward = forward


def stock_of(function: Callable, module: str) -> Callable:
    """The module's own function, under all that the plugin of this process has wrapped around it."""
    while function.__module__ != module:
        inner = inspect.getclosurevars(function).nonlocals.values()
        function = next(value for value in inner if inspect.isfunction(value))
    return function


def tower(name: str, patch: Callable = share_images) -> tuple[Any, Callable, Callable]:
    """A small tower, with the stock forward of it and of its parts, and its forward with the patch."""
    modeling = import_module(name)
    kind = getattr(modeling, TOWERS[name])
    parts = [
        value for key, value in vars(modeling).items() if key.endswith(("VisionAttention", "PatchEmbed"))
    ]
    assert len(parts) == 2
    for each in (kind, *parts):
        each.forward = stock_of(each.forward, name)
    stock_config = AutoConfig.for_model(name.split(".")[2]).vision_config
    config = type(stock_config)(**{key: SMALL[key] for key in SMALL if hasattr(stock_config, key)})
    config._attn_implementation = "sdpa"
    stock = kind.forward
    patch(modeling)
    torch.manual_seed(0)
    return kind(config), stock, kind.forward


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


def computed(module: Any, forward: Callable, pixels: torch.Tensor, grids: torch.Tensor) -> list[torch.Tensor]:
    """The tower's outputs, and the gradients of its weights."""
    module.zero_grad()
    found = tensors(forward(module, pixels, grids))
    torch.manual_seed(2)
    torch.stack([(tensor * torch.randn_like(tensor)).sum() for tensor in found]).sum().backward()
    return [*found, *(weight.grad.clone() for weight in module.parameters() if weight.grad is not None)]


def assert_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(one) == len(other)
    assert len(one) >= 4
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(a.abs().max())))


@pytest.mark.parametrize("name", TOWERS)
def test_outputs_and_gradients_are_the_stock_towers(name: str) -> None:
    module, stock, ours = tower(name)
    pixels, grids = batch(module.patch_embed.proj.weight[0].numel(), COPIES)
    assert_equal(*(computed(module, forward, pixels, grids) for forward in (stock, ours)))


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("copies", [COPIES, [0, 3, 0], [1, 2], [1]])
def test_attention_in_few_calls_is_the_stock_towers(name: str, copies: list[int], monkeypatch: Any) -> None:
    calls = []
    stock_attention = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args[0].shape)
        return stock_attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    results, counts = [], []
    for patch in (lambda _: None, vision_tower_without_loops):
        module, _, forward = tower(name, patch)
        pixels, grids = batch(module.patch_embed.proj.weight[0].numel(), copies)
        calls.clear()
        results.append(computed(module, forward, pixels, grids))
        counts.append(len(calls))
    assert_equal(*results)
    lengths = {t * h * w for t, h, w in grids.tolist()}
    parts = sum(t * h * w // 16 for t, h, w in grids.tolist())  # windows of 4 x 4 patches
    windows = name.endswith("qwen2_5_vl")  # in one of its two blocks
    assert counts == [
        (parts if windows else len(grids)) + len(grids),
        (1 if windows else len(lengths)) + len(lengths),
    ]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_tokens_attend_to_their_part_alone(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    states = tuple(torch.randn(sum(lengths), 2, 8, generator=generator) for _ in range(3))
    ends = torch.tensor([0, *lengths]).cumsum(0)
    part = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    mask = part[:, None] == part[None]
    query, key, value = (state.transpose(0, 1) for state in states)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    found = attend_within(states, parts_of(ends.int()), 0.3)
    torch.testing.assert_close(found, expected.transpose(0, 1))


@pytest.mark.parametrize("name", TOWERS)
def test_attention_of_another_kind_stays_the_stock_towers(name: str) -> None:
    """flash-attn, which veRL asks for unless told: here a stand-in, since the package needs a GPU."""
    calls = []

    def stand_in(module: Any, query: Any, *_: Any, cu_seq_lens_q: torch.Tensor, **__: Any) -> Any:
        calls.append(cu_seq_lens_q.tolist())
        return query.transpose(1, 2), None

    kept = ALL_ATTENTION_FUNCTIONS["flash_attention_2"]
    ALL_ATTENTION_FUNCTIONS.register("flash_attention_2", stand_in)
    try:
        results = []
        for patch in (lambda _: None, vision_tower_without_loops):
            module, _, forward = tower(name, patch)
            module.config._attn_implementation = "flash_attention_2"
            pixels, grids = batch(module.patch_embed.proj.weight[0].numel(), COPIES)
            results.append(computed(module, forward, pixels, grids))
    finally:
        ALL_ATTENTION_FUNCTIONS.register("flash_attention_2", kept)
    assert_equal(*results)
    assert len(calls) == 2 * 2  # both towers have two blocks
    assert calls[:2] == calls[2:]


def test_a_patch_embedding_that_is_no_plain_convolution_is_asked() -> None:
    class Doubled(torch.nn.Conv3d):
        """As an adapter would change it."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    name = next(iter(TOWERS))
    module, _, _ = tower(name, vision_tower_without_loops)
    pixels, _ = batch(module.patch_embed.proj.weight[0].numel(), [0])
    plain = module.patch_embed(pixels)
    doubled = Doubled(
        3, 32, **{key: getattr(module.patch_embed.proj, key) for key in ("kernel_size", "stride")}
    )
    doubled.weight, doubled.bias = module.patch_embed.proj.weight, module.patch_embed.proj.bias
    module.patch_embed.proj = doubled
    torch.testing.assert_close(module.patch_embed(pixels), 2 * plain)


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
