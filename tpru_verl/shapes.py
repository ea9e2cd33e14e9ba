"""The shapes of models: their sizes, and how many parameters they have.

From the config.json of a folder, or of the models on the Hub whose shape is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from tpru_verl.models import DEFAULT, TPRU_BASES, read_config


class DeltaNet(NamedTuple):
    """The linear attention of Qwen3.5 (Gated DeltaNet), which some layers have in the place of attention."""

    layers: int  # that have it
    key_heads: int
    value_heads: int
    key_dim: int  # of a head
    value_dim: int
    kernel: int  # of the convolution over queries, keys and values

    @property
    def channels(self) -> int:
        """Queries, keys and values of one token."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def state(self) -> int:
        """Numbers that a layer keeps of a sequence of any length, in the place of a cache of all tokens."""
        return self.value_heads * self.key_dim * self.value_dim + (self.kernel - 1) * self.channels


class Shape(NamedTuple):
    """Sizes in a model's config.json; those of the vision tower begin with `vision_`."""

    layers: int
    hidden: int
    intermediate: int  # of a layer's MLP; of one expert where there are experts
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    vision_layers: int
    vision_hidden: int
    vision_intermediate: int
    patch: int
    merge: int = 2
    experts: int = 0  # of a layer; 0 for one MLP
    experts_a_token: int = 0
    shared_intermediate: int = 0  # of the expert that every token passes, beside those chosen for it
    delta_net: DeltaNet | None = None
    vision_gated: bool = True  # three matrices in an MLP of the tower, as in Qwen2.5-VL; else two
    vision_positions: int = 0  # learned positions of the tower
    deepstack: int = 0  # layers of the tower whose features go into the language model, each by a merger

    @property
    def kv_layers(self) -> int:
        """Layers with attention to all tokens, which have a cache that grows with the sequence."""
        return self.layers - (self.delta_net.layers if self.delta_net else 0)

    @property
    def matrices(self) -> list[tuple[int, int, int]]:
        """Inputs, outputs and number of the linear modules in the language model's layers.

        They are what `target_modules=all-linear` of LoRA adapts, where the vision tower is left out. The
        experts are no linear modules in transformers 5, nor are the routers.
        """
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        gated = 2 if self.delta_net else 1  # Qwen3.5 gates the output of attention
        found = [
            (self.hidden, gated * queries, self.kv_layers),
            (self.hidden, keys, 2 * self.kv_layers),
            (queries, self.hidden, self.kv_layers),
        ]
        if net := self.delta_net:
            values = net.value_heads * net.value_dim
            found += [
                (self.hidden, net.channels, net.layers),
                (self.hidden, values, net.layers),
                (self.hidden, net.value_heads, 2 * net.layers),
                (values, self.hidden, net.layers),
            ]
        wide = self.shared_intermediate if self.experts else self.intermediate
        if wide:
            found += [(self.hidden, wide, 2 * self.layers), (wide, self.hidden, self.layers)]
        if wide and self.experts:
            found.append((self.hidden, 1, self.layers))  # the gate of the shared expert
        return found

    @property
    def expert(self) -> int:
        """Parameters of one expert of one layer; 0 where there are none."""
        return 3 * self.hidden * self.intermediate if self.experts else 0

    @property
    def vision_parameters(self) -> int:
        """Of the vision tower and its mergers; biases and norms left out."""
        wide, merged = self.vision_hidden, self.merge**2 * self.vision_hidden
        layer = 4 * wide**2 + (3 if self.vision_gated else 2) * wide * self.vision_intermediate
        patches = 3 * 2 * self.patch**2 * wide
        mergers = (1 + self.deepstack) * merged * (merged + self.hidden)
        return self.vision_layers * layer + patches + self.vision_positions * wide + mergers

    @property
    def parameters(self) -> int:
        """Of the whole model: language model with its embeddings, and vision tower; biases left out."""
        linear = sum(rows * columns * number for rows, columns, number in self.matrices)
        experts = self.layers * self.experts * (self.expert + self.hidden)  # with the router
        convolution = (
            self.delta_net.layers * self.delta_net.channels * self.delta_net.kernel if self.delta_net else 0
        )
        words = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return linear + experts + convolution + words + self.vision_parameters

    @property
    def active(self) -> int:
        """Parameters without the experts that a token does not pass. A name's "A3B" leaves out the tower."""
        return self.parameters - self.layers * (self.experts - self.experts_a_token) * self.expert


# Layers, width and MLP of the vision towers of Qwen3-VL and Qwen3.5.
_TINY, _SMALL, _LARGE = (12, 768, 3072), (24, 1024, 4096), (27, 1152, 4304)


def _qwen3_vl(
    tower: tuple[int, int, int], *text: int, tied: bool = False, experts: tuple[int, int] = (0, 0)
) -> Shape:
    """`text`: layers, hidden, intermediate, heads, kv_heads."""
    layers, hidden, intermediate, heads, kv_heads = text
    sizes = (layers, hidden, intermediate, heads, kv_heads, 128, 151936, tied, *tower, 16, 2, *experts)
    return Shape(*sizes, vision_gated=False, vision_positions=2304, deepstack=3)


def _qwen35(
    tower: tuple[int, int, int], *text: int, tied: bool = False, experts: tuple[int, int, int] = (0, 0, 0)
) -> Shape:
    """`text`: layers, hidden, intermediate, heads, kv_heads, value heads of the linear attention."""
    layers, hidden, intermediate, heads, kv_heads, values = text
    sizes = (layers, hidden, intermediate, heads, kv_heads, 256, 248320, tied, *tower, 16, 2, *experts)
    net = DeltaNet(layers - layers // 4, 16, values, 128, 128, 4)  # every fourth layer has attention
    return Shape(*sizes, delta_net=net, vision_gated=False, vision_positions=2304)


# From config.json of these models on the Hub, for runs that have not downloaded them yet.
SHAPES = {
    "Qwen/Qwen2.5-VL-3B-Instruct": Shape(36, 2048, 11008, 16, 2, 128, 151936, True, 32, 1280, 3420, 14),
    "Qwen/Qwen2.5-VL-7B-Instruct": Shape(28, 3584, 18944, 28, 4, 128, 152064, False, 32, 1280, 3420, 14),
    "Qwen/Qwen2.5-VL-32B-Instruct": Shape(64, 5120, 27648, 40, 8, 128, 152064, False, 32, 1280, 3456, 14),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3_vl(_SMALL, 28, 2048, 6144, 16, 8, tied=True),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3_vl(_SMALL, 36, 2560, 9728, 32, 8, tied=True),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3_vl(_LARGE, 36, 4096, 12288, 32, 8),
    "Qwen/Qwen3-VL-32B-Instruct": _qwen3_vl(_LARGE, 64, 5120, 25600, 64, 8),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": _qwen3_vl(_LARGE, 48, 2048, 768, 32, 4, experts=(128, 8)),
    "Qwen/Qwen3.5-0.8B": _qwen35(_TINY, 24, 1024, 3584, 8, 2, 16, tied=True),
    "Qwen/Qwen3.5-2B": _qwen35(_SMALL, 24, 2048, 6144, 8, 2, 16, tied=True),
    "Qwen/Qwen3.5-4B": _qwen35(_SMALL, 32, 2560, 9216, 16, 4, 32, tied=True),
    "Qwen/Qwen3.5-9B": _qwen35(_LARGE, 32, 4096, 12288, 16, 4, 32),
    "Qwen/Qwen3.5-27B": _qwen35(_LARGE, 64, 5120, 17408, 24, 4, 48),
    "Qwen/Qwen3.5-35B-A3B": _qwen35(_LARGE, 40, 2048, 512, 16, 2, 32, experts=(256, 8, 512)),
}


def shape_of(model: str) -> Shape | None:
    """From `model`/config.json, or of a model whose Hub id is known; None for any other.

    Raises ValueError for a config.json that is not readable or lacks a size.
    """
    config = read_config(model)
    if config is None:
        name = TPRU_BASES.get(model, model)  # a thinking or base model has the shape of the other
        return SHAPES.get(name.removesuffix("-Base").replace("-Thinking", "-Instruct"))
    try:
        return _shape(config)
    except ValueError as error:
        raise ValueError(f"{model}/config.json: {error}") from error


def _shape(config: Mapping[str, object]) -> Shape:
    text, vision = _part(config, "text_config") or config, _part(config, "vision_config")
    hidden, heads = _size(text, "hidden_size"), _size(text, "num_attention_heads")
    # transformers saves the second, the released models have the first.
    experts = _size(text, "num_experts", 0) or _size(text, "num_local_experts", 0)
    # Qwen2-VL has the tower's width under another name, and that of its MLP as a ratio.
    wide = _size(vision, "embed_dim", 0) or _size(vision, "hidden_size", 0)
    return Shape(
        layers=_size(text, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_size(text, "moe_intermediate_size" if experts else "intermediate_size"),
        heads=heads,
        kv_heads=_size(text, "num_key_value_heads", heads),
        head_dim=_size(text, "head_dim", hidden // max(1, heads)),
        vocabulary=_size(text, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        vision_layers=_size(vision, "depth", 0),
        vision_hidden=wide,
        vision_intermediate=_size(vision, "intermediate_size", _size(vision, "mlp_ratio", 0) * wide),
        patch=_size(vision, "patch_size", DEFAULT.patch),
        merge=_size(vision, "spatial_merge_size", DEFAULT.merge),
        experts=experts,
        experts_a_token=_size(text, "num_experts_per_tok", 0),
        shared_intermediate=_size(text, "shared_expert_intermediate_size", 0) if experts else 0,
        delta_net=_delta_net(text),
        vision_gated=vision.get("hidden_act") == "silu",
        vision_positions=_size(vision, "num_position_embeddings", 0),
        deepstack=len(cast("list[int]", vision.get("deepstack_visual_indexes") or [])),
    )


def _delta_net(text: Mapping[str, object]) -> DeltaNet | None:
    if "linear_num_value_heads" not in text:
        return None
    kinds, layers = text.get("layer_types"), _size(text, "num_hidden_layers")
    linear = layers - layers // max(1, _size(text, "full_attention_interval", 4))
    return DeltaNet(
        layers=kinds.count("linear_attention") if isinstance(kinds, list) else linear,
        key_heads=_size(text, "linear_num_key_heads"),
        value_heads=_size(text, "linear_num_value_heads"),
        key_dim=_size(text, "linear_key_head_dim"),
        value_dim=_size(text, "linear_value_head_dim"),
        kernel=_size(text, "linear_conv_kernel_dim"),
    )


def _part(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    part = config.get(key)
    return part if isinstance(part, dict) else {}


def _size(part: Mapping[str, object], key: str, default: int | None = None) -> int:
    """The number under `key`; `default` where there is none or null. Raises ValueError for anything else."""
    value = part.get(key)
    value = default if value is None else value
    if isinstance(value, list) and value and value == value[:1] * len(value):
        value = value[0]  # a square as [side, side]: InternVL
    if not isinstance(value, int) or value < 0:
        found = "nothing" if value is None else repr(value)
        raise ValueError(f"{key}: found {found}, expected a whole number, as vision-language models have it")
    return value
