"""A tiny model with random weights of each family in `tpru_verl.models`: real classes, processor and format.

They have a few 100,000 parameters and nothing learned. They show, on a CPU, that a family goes through data,
rollout and update (benchmarks/families.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from tpru_verl.demo.scenes import make_rows
from tpru_verl.demo.tiny_model import CHAT_TEMPLATE, build_tokenizer
from tpru_verl.models import Family

HIDDEN, HEADS, HEAD = 128, 4, 32
# A head of 32 has 16 angles for time, height and width.
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]}
_INTERLEAVED = {"rope_parameters": {**_ROPE, "mrope_interleaved": True}}
# `norm_topk_prob` is in the released files and asked for by vLLM; transformers always normalises.
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
# Linear attention between two layers with full attention, in which a quarter of a head of 64 is rotated.
_HYBRID = {
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "linear_attention", "full_attention"],
    "head_dim": 64,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    # As released. vLLM's kernel for a CPU takes no smaller heads, and states of no other type.
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32",
    "rope_parameters": {
        **_INTERLEAVED["rope_parameters"],
        "mrope_section": [3, 3, 2],
        "partial_rotary_factor": 0.25,
    },
}
# Beside what all families have.
_TEXT: dict[str, dict[str, Any]] = {
    "qwen3_vl": _INTERLEAVED,
    "qwen3_vl_moe": {**_INTERLEAVED, **_EXPERTS},
    "qwen3_5": _HYBRID,
    "qwen3_5_moe": {**_HYBRID, **_EXPERTS, "shared_expert_intermediate_size": 64},
}
_VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"embed_dim": 64, "mlp_ratio": 2, "hidden_size": HIDDEN},
    "qwen2_5_vl": {"window_size": 112, "fullatt_block_indexes": [1]},
    "qwen3_vl": {"deepstack_visual_indexes": [0]},
    "qwen3_vl_moe": {"deepstack_visual_indexes": [0]},
}
# Qwen3.5 thinks unless told not to: its template opens the tag, or closes it again.
_THINKS = """\
{%- if add_generation_prompt -%}
{{- '<think>\\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}
{{- '\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""


def pixels_of(family: Family) -> int:
    """Pixels of an image that becomes 2 x 2 visual tokens."""
    return (2 * family.token_side) ** 2


def overrides(family: Family, model: Path) -> list[str]:
    """What `tpru train tpru_tiny_cpu` needs to train the family's tiny model: pixels in its patches."""
    return [
        f"actor_rollout_ref.model.path={model}",
        f"data.image_patch_size={family.patch}",
        f"data.min_pixels={pixels_of(family)}",
        f"data.max_pixels={pixels_of(family)}",
    ]


def build_processor(family: Family) -> ProcessorMixin:
    """The family's processor around a tokenizer of the demo's words; an image becomes 2 x 2 visual tokens."""
    texts = [row.problem for row in make_rows(200, seed=1)]
    pixels = pixels_of(family)
    thinks = family.model_type.startswith("qwen3_5")
    template = CHAT_TEMPLATE + (_THINKS if thinks else "")
    tokenizer = build_tokenizer(texts, family.words)
    tokenizer.chat_template = template
    bounds: dict[str, Any] = {"min_pixels": pixels, "max_pixels": pixels, "patch_size": family.patch}
    if family.patch == 16:  # as the released processors of these families
        bounds |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    videos = (
        transformers.Qwen3VLVideoProcessor(patch_size=family.patch)
        if family.processor == "Qwen3VLProcessor"
        else Qwen2VLVideoProcessor(min_pixels=pixels, max_pixels=pixels)
    )
    return getattr(transformers, family.processor)(
        image_processor=Qwen2VLImageProcessor(**bounds),
        tokenizer=tokenizer,
        video_processor=videos,
        chat_template=template,
    )


def build_model(family: Family, processor: ProcessorMixin, seed: int = 0) -> PreTrainedModel:
    """A float32 model of random weights for this processor; `seed` fixes them."""
    tokenizer = cast(Any, processor).tokenizer
    ids = tokenizer.get_vocab()
    special = {"bos_token_id": ids["<|endoftext|>"], "pad_token_id": ids["<|endoftext|>"]}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": HEAD,
        "max_position_embeddings": 2048,
        "rope_parameters": _ROPE,
        # With transformers' 0.02 all tokens would be about as likely, whatever the prompt.
        "initializer_range": 0.09,
        "eos_token_id": ids["<|im_end|>"],
        # As released. vLLM asks here whether Qwen3.5 has weights of its own for the logits.
        "tie_word_embeddings": True,
        **special,
        **_TEXT.get(family.model_type, {}),
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "patch_size": family.patch,
        "num_position_embeddings": 64,
        "initializer_range": 0.09,
        **_VISION.get(family.model_type, {}),
    }
    config = AutoConfig.for_model(
        family.model_type,
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], do_sample=True, **special
    )
    return model


def save(family: Family, folder: Path, seed: int = 0) -> Path:
    """Write model and processor as an ordinary Hugging Face folder, and return it."""
    processor = build_processor(family)
    build_model(family, processor, seed).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
