"""The families of models that training knows, and the shapes of models.

To add a family: an entry in `FAMILIES`, a recipe, and the tests that CONTRIBUTING.md names. Every process of
a run imports this module, so it imports nothing of ours and nothing heavy, and has no dataclass, which would
cost milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# Pre-tokenizers of Qwen2 to Qwen3-VL and of Qwen3.5, as regular expressions of `tokenizers`.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Image processors that resize to multiples of a visual token, with bounds on the pixels of an image.
IMAGE_PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")


class Family(NamedTuple):
    """Models of one architecture: they share classes of transformers, patches and rules for tokens."""

    name: str  # as the Hub ids of its models contain it
    model_type: str  # in config.json, and the name of its folder in transformers
    processor: str  # class of transformers
    patch: int  # side of a patch of an image, in pixels
    merge: int = 2  # merge x merge patches become one visual token
    vision_tower: str = ""  # class of transformers; "" where its input is not shared (`plugin/vision.py`)
    words: str = QWEN2_WORDS  # how the tokenizer cuts text into words
    # The first EasyR1 that can train it, and a file that tells such an EasyR1; "" where 0.3.2 can.
    easyr1: str = ""
    easyr1_file: str = ""

    @property
    def modeling(self) -> str:
        """The module of transformers that defines its models."""
        return f"transformers.models.{self.model_type}.modeling_{self.model_type}"

    @property
    def token_side(self) -> int:
        """Side, in pixels, of what becomes one visual token."""
        return self.patch * self.merge


FAMILIES = {
    family.model_type: family
    for family in (
        Family("Qwen2-VL", "qwen2_vl", "Qwen2VLProcessor", patch=14),
        Family(
            "Qwen2.5-VL",
            "qwen2_5_vl",
            "Qwen2_5_VLProcessor",
            patch=14,
            vision_tower="Qwen2_5_VisionTransformerPretrainedModel",
        ),
        Family(
            "Qwen3-VL",
            "qwen3_vl",
            "Qwen3VLProcessor",
            patch=16,
            vision_tower="Qwen3VLVisionModel",
            easyr1="0.3.3 (its head)",
            easyr1_file="models/transformers/qwen3_vl.py",
        ),
    )
}
DEFAULT = FAMILIES["qwen2_5_vl"]  # of the published models

# `verl.utils.tokenizer.hf_processor` of veRL 0.9.1: for any other processor it returns None with a warning.
# Prompts of a processor that no family above has are prepared by stock veRL (`plugin/agent_loop.py`).
VERL_PROCESSORS = (
    *("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor", "Glm4vProcessor", "Glm46VProcessor"),
    *("MllamaProcessor", "Gemma4Processor"),
)


def verl_refusal(processor: str) -> str:
    """Why veRL 0.9.1 cannot train a model with this class of processor; "" where it can."""
    if processor in VERL_PROCESSORS:
        return ""
    return f"found {processor}, expected a processor that veRL 0.9.1 knows: {', '.join(VERL_PROCESSORS)}"


def processor_of(model: str) -> str:
    """The class of processor that the files of a folder name; "" where they name none, and for a Hub id."""
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if found := (_json(Path(model).expanduser() / name) or {}).get("processor_class"):
            return str(found)
    return ""


def patch_sides() -> str:
    """The sides of a patch with the families that have them, for help texts."""
    sides = sorted({family.patch for family in FAMILIES.values()})
    return " or ".join(
        f"{side} ({', '.join(family.name for family in FAMILIES.values() if family.patch == side)})"
        for side in sides
    )


def visual_tokens(width: int, height: int, patch: int, merge: int) -> int:
    """Visual tokens of an image that was resized to `width` x `height` pixels."""
    return (width // patch) * (height // patch) // merge**2


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

    @property
    def parameters(self) -> int:
        """Of the language model with its embeddings, the vision tower and its merger; biases left out."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        mlp = 3 * self.hidden * self.intermediate
        layer = attention + (self.experts * (mlp + self.hidden) if self.experts else mlp)
        words = self.vocabulary * self.hidden * (1 if self.tied else 2)
        wide = self.vision_hidden
        merged = self.merge**2 * wide
        tower = self.vision_layers * (4 * wide**2 + 3 * wide * self.vision_intermediate)
        patches = 3 * 2 * self.patch**2 * wide
        return self.layers * layer + words + patches + tower + merged * (merged + self.hidden)


# From config.json of these models on the Hub, for runs that have not downloaded them yet.
SHAPES = {
    "Qwen/Qwen2.5-VL-3B-Instruct": Shape(36, 2048, 11008, 16, 2, 128, 151936, True, 32, 1280, 3420, 14),
    "Qwen/Qwen2.5-VL-7B-Instruct": Shape(28, 3584, 18944, 28, 4, 128, 152064, False, 32, 1280, 3420, 14),
    "Qwen/Qwen2.5-VL-32B-Instruct": Shape(64, 5120, 27648, 40, 8, 128, 152064, False, 32, 1280, 3456, 14),
    "Qwen/Qwen3-VL-4B-Instruct": Shape(36, 2560, 9728, 32, 8, 128, 151936, True, 24, 1024, 4096, 16),
}


def family_of(model: str) -> Family | None:
    """By the config.json of a folder, by the name of a Hub id; None for a model of no family here.

    Raises ValueError for a config.json that is not readable.
    """
    config = _json(Path(model).expanduser() / "config.json")
    if config is not None:
        return FAMILIES.get(str(config.get("model_type")))
    named = [family for family in FAMILIES.values() if f"{family.name}-" in model]
    return max(named, key=lambda family: len(family.name), default=None)


def shape_of(model: str) -> Shape | None:
    """From `model`/config.json, or of a model whose Hub id is known; None for any other.

    Raises ValueError for a config.json that is not readable or lacks a size.
    """
    config = _json(Path(model).expanduser() / "config.json")
    if config is None:
        return SHAPES.get(model)
    try:
        return _shape(config)
    except ValueError as error:
        raise ValueError(f"{model}/config.json: {error}") from error


def _json(file: Path) -> Mapping[str, object] | None:
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: found no JSON ({error}), expected a model's configuration") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file}: found {type(config).__name__}, expected a JSON object")
    return config


def _shape(config: Mapping[str, object]) -> Shape:
    text, vision = _part(config, "text_config") or config, _part(config, "vision_config")
    hidden, heads = _size(text, "hidden_size"), _size(text, "num_attention_heads")
    # transformers saves the second, the released models have the first.
    experts = _size(text, "num_experts", 0) or _size(text, "num_local_experts", 0)
    return Shape(
        layers=_size(text, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_size(text, "moe_intermediate_size" if experts else "intermediate_size"),
        heads=heads,
        kv_heads=_size(text, "num_key_value_heads", heads),
        head_dim=_size(text, "head_dim", hidden // max(1, heads)),
        vocabulary=_size(text, "vocab_size"),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        vision_layers=_size(vision, "depth", 0),
        vision_hidden=_size(vision, "hidden_size", 0),
        vision_intermediate=_size(vision, "intermediate_size", 0),
        patch=_size(vision, "patch_size", DEFAULT.patch),
        merge=_size(vision, "spatial_merge_size", DEFAULT.merge),
        experts=experts,
        experts_a_token=_size(text, "num_experts_per_tok", 0),
    )


def _part(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    part = config.get(key)
    return part if isinstance(part, dict) else {}


def _size(part: Mapping[str, object], key: str, default: int | None = None) -> int:
    """The number under `key`; `default` where there is none or null. Raises ValueError for anything else."""
    value = part.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value < 0:
        found = "nothing" if value is None else repr(value)
        raise ValueError(f"{key}: found {found}, expected a whole number, as vision-language models have it")
    return value
