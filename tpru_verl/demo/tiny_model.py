"""A tiny Qwen2.5-VL: the real classes, processor and chat format with about a million parameters.

It is saved as an ordinary Hugging Face folder, so transformers, vLLM and veRL load it like any checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLVisionBlock,
    apply_rotary_pos_emb_vision,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from tpru_verl.data.tokens.text import DEMO_WORDS
from tpru_verl.demo.scenes import SIZE

PATCH = 14
VOCABULARY = 900  # at most; the demo's few words give about 420
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Single tokens, but not special ones: decoding with skip_special_tokens has to keep them for the grader.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# The format of Qwen2.5-VL's conversations. Unlike the original it adds no system turn of its own.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' or 'video' in part -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def build_tokenizer(texts: Iterable[str], words: str = DEMO_WORDS) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts`, which are cut by the regular expression `words` first.

    With the default digits stay together, unlike Qwen's: an order such as "3142" is one token, so that
    choosing the option that spells it is one look-up, which a model of three layers can learn.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS) - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor(texts: Iterable[str]) -> Qwen2_5_VLProcessor:
    """Return Qwen2.5-VL's processor around a tokenizer trained on `texts`; every image becomes 56 x 56."""
    pixels = SIZE * SIZE
    tokenizer = build_tokenizer(texts)
    tokenizer.chat_template = CHAT_TEMPLATE
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=pixels, max_pixels=pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(min_pixels=pixels, max_pixels=pixels),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Return a randomly initialised float32 model for this tokenizer; `seed` fixes its weights."""
    ids = tokenizer.get_vocab()
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            # Heads of 32: sections for time, height and width sum to half of that.
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            # 1 / sqrt(hidden size): at transformers' 0.02 attention in so narrow a model starts out so flat
            # that looking up takes several times as long to learn.
            "initializer_range": 0.09,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 128,
            "window_size": 112,
            "initializer_range": 0.09,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=True,
    )
    return model


def vision_features(model: Qwen2_5_VLForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """Run the vision tower on images of the demo's one size, all at once.

    transformers walks through the images in a Python loop, which costs more than the mathematics when they
    are this small. An image of 56 x 56 pixels is a single window of 112, so that windowed and full attention
    are the same and one batched attention over (images, 16 patches) gives what that loop gives.

    Args:
        pixel_values: (images * 16, 3 * 2 * 14 * 14), as the processor returns them.

    Returns:
        (images * 4, text hidden size), in the order of the image tokens.
    """
    visual = model.model.visual
    patches = (SIZE // PATCH) ** 2
    images = len(pixel_values) // patches
    # Patches come in 2 x 2 blocks, those that are merged into one token side by side.
    at = torch.arange(SIZE // PATCH).view(-1, visual.spatial_merge_size)
    rows, columns = torch.broadcast_tensors(at[:, None, :, None], at[None, :, None, :])
    places = torch.stack([rows.flatten(), columns.flatten()], dim=-1)
    angles = (places[..., None] * visual.rotary_pos_emb.inv_freq).flatten(1).repeat(images, 2)
    # The patch embedding is a convolution by whole patches, so a product, which is far quicker.
    hidden = linear(pixel_values, visual.patch_embed.proj.weight.flatten(1))
    for block in cast(list[Qwen2_5_VLVisionBlock], visual.blocks):
        attention = block.attn
        shape = (images, patches, attention.num_heads, attention.head_dim)
        query, key, value = attention.qkv(block.norm1(hidden)).chunk(3, dim=-1)
        query, key = apply_rotary_pos_emb_vision(
            query.view(-1, *shape[2:]), key.view(-1, *shape[2:]), angles.cos(), angles.sin()
        )
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in (query, key, value))
        mixed = scaled_dot_product_attention(query, key, value)
        hidden = hidden + attention.proj(mixed.transpose(1, 2).reshape(hidden.shape))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden)


def save(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path) -> None:
    """Write float32 safetensors, configuration, tokenizer, processor and chat template to `folder`."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
