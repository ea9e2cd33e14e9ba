"""Qwen3.5's linear attention in veRL's forward: packed sequences, and later versions of transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Qwen3_5TextConfig
from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling
from verl.models.transformers import qwen3_5

from tpru_verl.plugin import hooks, linear_attention

KINDS = ["linear_attention", "full_attention"]


@pytest.fixture(scope="module")
def config() -> Any:
    heads: dict[str, Any] = {
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
    return Qwen3_5TextConfig(
        hidden_size=64, num_hidden_layers=2, layer_types=KINDS, linear_num_value_heads=4, **heads
    )


@pytest.fixture
def net(config: Any) -> Any:
    torch.manual_seed(0)
    net = modeling.Qwen3_5GatedDeltaNet(config, 0)
    torch.nn.init.constant_(net.A_log, -4.0)  # states last
    return net


def packed(net: Any, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences in one row, by veRL's forward; and each alone, by transformers' own."""
    torch.manual_seed(1)
    rows = [torch.randn(1, length, 64) for length in lengths]
    ends: Any = torch.tensor([0, *lengths]).cumsum(0)
    with torch.no_grad():
        together = qwen3_5.qwen3_5_gated_delta_net_forward(
            net, torch.cat(rows, dim=1), cu_seqlens=ends, cu_seqlens_cpu=ends
        )
        return together, torch.cat([net(row) for row in rows], dim=1)


def test_the_patches_are_applied() -> None:
    names = ("packed_sequences_apart", "newer_linear_attention")
    assert all(hooks.is_applied(name) for name in names)


@pytest.mark.parametrize("lengths", [[30, 20], [1, 130, 1, 64], [5]])
def test_a_packed_sequence_is_computed_as_alone(net: Any, lengths: list[int]) -> None:
    together, alone = packed(net, lengths)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_stock_verl_carries_the_state_on(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, veRL or transformers has mended it, and the patch may go."""

    def stock(function: Callable, name: str) -> bool:
        return name in ("cu_seqlens", "cu_seqlens_cpu")  # among the **kwargs

    monkeypatch.setattr(qwen3_5, "_call_accepts_kwarg", stock)
    together, alone = packed(net, [30, 20])
    torch.testing.assert_close(together[:, :30], alone[:, :30], atol=1e-5, rtol=1e-4)
    assert (together - alone)[:, 30:].abs().max() > 1e-3


def test_a_function_with_a_parameter_of_the_name_gets_it() -> None:
    def kernel(query: int, cu_seqlens: int | None = None, **kwargs: int) -> None: ...

    assert qwen3_5._call_accepts_kwarg(kernel, "cu_seqlens")
    assert not qwen3_5._call_accepts_kwarg(kernel, "cp_context")


def test_without_the_functions_of_earlier_versions(net: Any) -> None:
    for name in ("chunk_gated_delta_rule", "recurrent_gated_delta_rule", "causal_conv1d_fn"):
        vars(net).pop(name, None)
    together, alone = packed(net, [30, 20])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("index", [0, 1])
def test_a_layer_with_the_later_name_of_its_kind(config: Any, index: int) -> None:
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    layer: Any = modeling.Qwen3_5DecoderLayer(config, index)
    vars(layer).pop("layer_type", None)
    layer.block_type = KINDS[index]
    hidden = torch.randn(1, 7, 64)
    angles = modeling.Qwen3_5TextRotaryEmbedding(config)(hidden, torch.arange(7)[None])
    with torch.no_grad():
        found = qwen3_5.qwen3_5_decoder_layer_forward(layer, hidden, angles)
        layer.layer_type = KINDS[index]
        own = modeling.Qwen3_5DecoderLayer.forward(layer, hidden, angles)
    torch.testing.assert_close(found, own)


def test_a_kernel_needs_a_gpu_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert linear_attention._kernel("math", "sqrt") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert linear_attention._kernel("math", "sqrt") is not None
    assert linear_attention._kernel("no_such_package", "sqrt") is None
