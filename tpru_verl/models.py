"""The families of models that training knows.

To add a family: an entry in `FAMILIES`, a recipe, and the tests that CONTRIBUTING.md names; the shapes of its
models are in `shapes.py`. Every process of
a run imports this module, so it imports nothing of ours and nothing heavy, and has no dataclass, which would
cost milliseconds.
"""

from __future__ import annotations

import json
import re
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
    vision_tower: str  # class of transformers, whose input is shared (`plugin/vision.py`)
    merge: int = 2  # merge x merge patches become one visual token
    words: str = QWEN2_WORDS  # how the tokenizer cuts text into words
    # The first EasyR1 that can train it ("" where none can yet), and a file that tells such an EasyR1.
    easyr1: str = "0.3.2"
    easyr1_file: str = ""
    opens_think: bool = False  # its chat template opens a `<think>`, which its recipes turn off
    refused: str = ""  # why veRL 0.9.1 does not train it; "" where it does

    @property
    def modeling(self) -> str:
        """The module of transformers that defines its models."""
        return f"transformers.models.{self.model_type}.modeling_{self.model_type}"

    @property
    def token_side(self) -> int:
        """Side, in pixels, of what becomes one visual token."""
        return self.patch * self.merge


# benchmarks/families.py: vLLM samples from other weights than the actor's (correlation 0.22), or fails to
# load them. transformers 5 keeps all experts of a layer in one tensor.
_EXPERTS = (
    "a model with experts, expected one without: with veRL 0.9.1 and transformers 5, vLLM did not get the "
    "actor's experts (docs/models.md)"
)

FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            "Qwen2-VL",
            "qwen2_vl",
            "Qwen2VLProcessor",
            patch=14,
            vision_tower="Qwen2VisionTransformerPretrainedModel",
        ),
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
        Family(
            "Qwen3-VL-MoE",
            "qwen3_vl_moe",
            "Qwen3VLProcessor",
            patch=16,
            vision_tower="Qwen3VLMoeVisionModel",
            easyr1="0.3.3 (its head)",
            easyr1_file="models/transformers/qwen3_vl.py",
            refused=_EXPERTS,
        ),
        Family(
            "Qwen3.5",
            "qwen3_5",
            "Qwen3VLProcessor",
            patch=16,
            vision_tower="Qwen3_5VisionModel",
            words=QWEN35_WORDS,
            easyr1="",
            opens_think=True,
        ),
        Family(
            "Qwen3.5-MoE",
            "qwen3_5_moe",
            "Qwen3VLProcessor",
            patch=16,
            vision_tower="Qwen3_5MoeVisionModel",
            words=QWEN35_WORDS,
            easyr1="",
            opens_think=True,
            refused=_EXPERTS,
        ),
    )
}
DEFAULT = FAMILIES["qwen2_5_vl"]  # of the published models
# The published models of TPRU, with the models that they were trained from and share the shape with.
TPRU_BASES = {f"Stephengzk/TPRU-{size}": f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B")}

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
    return f"found {processor}, {_KNOWN}"


_KNOWN = (
    f"expected a processor that veRL 0.9.1 knows: {', '.join(VERL_PROCESSORS)}; "
    "docs/models.md lists models to take"
)


def model_refusal(folder: str) -> str:
    """Why veRL 0.9.1 cannot train the model in a folder on images, by its files alone; "" for all others.

    Raises ValueError for a file that is not readable.
    """
    if processor := processor_of(folder):
        return verl_refusal(processor)
    config = read_config(folder) or {}
    kind = config.get("model_type")
    if not kind or (kind in FAMILIES and "vision_config" in config):
        return ""
    if not any(key.startswith("vision") for key in config):
        return f"found a model of text alone ({kind}), expected one for images, such as docs/models.md lists"
    return f"found no processor in the files of this model ({kind}), {_KNOWN}"


def processor_of(model: str) -> str:
    """The class of processor that the files of a folder name; "" where they name none, and for a Hub id.

    They name it in `auto_map` where the class comes with the model: `processing_kimi_vl.KimiVLProcessor`.
    """
    files = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "config.json")
    for config in filter(None, (read_config(model, name) for name in files)):
        code = config.get("auto_map")
        own = code.get("AutoProcessor") if isinstance(code, Mapping) else None
        if found := config.get("processor_class") or own:
            return str(found).rpartition(".")[2]
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


def family_of(model: str) -> Family | None:
    """By the config.json of a folder, by the name of a Hub id; None for a model of no family here.

    Raises ValueError for a config.json that is not readable.
    """
    config = read_config(model)
    if config is not None:
        return FAMILIES.get(str(config.get("model_type")))
    name = TPRU_BASES.get(model, model)
    kind = "-MoE" if re.search(r"-A\d+B\b", name) else ""  # Qwen3-VL-30B-A3B-Instruct: 3B of 30B are active
    named = [family for family in FAMILIES.values() if f"{family.name.removesuffix(kind)}-" in name]
    return max(named, key=lambda family: len(family.name), default=None)


def read_config(folder: str, name: str = "config.json") -> Mapping[str, object] | None:
    """A JSON object in the folder of a model; None where there is no such file.

    Raises ValueError for a file that is no JSON object.
    """
    file = Path(folder).expanduser() / name
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: found no JSON ({error}), expected a model's configuration") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file}: found {type(config).__name__}, expected a JSON object")
    return config
