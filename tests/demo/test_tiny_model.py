"""The shipped checkpoint is a real Qwen2.5-VL that knows the answers' form; shortcuts change no number."""

from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

import tpru_verl.demo
from tpru_verl.demo.scenes import IMITATED, ORDERS, UNSEEN, make_rows
from tpru_verl.demo.tiny_model import (
    SPECIAL_TOKENS,
    TAGS,
    build_model,
    build_processor,
    save,
    vision_features,
)
from tpru_verl.demo.warm_start import (
    Batch,
    accuracy,
    embed,
    encode,
    generate,
    loss_of,
    prompt_text,
)

CHECKPOINT = Path(tpru_verl.demo.__file__).parent / "checkpoint"
ANSWER = "<think>The order is 3 1 4 2 so 3142 B</think><answer>B</answer><|im_end|>"


def load(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    return cast(Qwen2_5_VLForConditionalGeneration, AutoModelForImageTextToText.from_pretrained(folder))


@pytest.fixture(scope="module")
def model() -> Qwen2_5_VLForConditionalGeneration:
    return load(CHECKPOINT)


@pytest.fixture(scope="module")
def processor() -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def batch(processor: Qwen2_5_VLProcessor) -> Batch:
    rows = make_rows(6, seed=11)
    prompts = [prompt_text(processor, row.problem) for row in rows]
    return encode(processor, prompts, [ANSWER] * 6, [image for row in rows for image in row.images])


def test_checkpoint_loads_as_the_real_classes(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor
):
    assert isinstance(model, Qwen2_5_VLForConditionalGeneration)
    assert isinstance(processor, Qwen2_5_VLProcessor)
    assert model.dtype is torch.float32
    assert 0.8e6 < sum(weights.numel() for weights in model.parameters()) < 3e6
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 6e6
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert model.config.get_text_config().vocab_size == len(tokenizer) == len(processor.tokenizer)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id


def test_tokens_of_the_format_are_single_and_the_tags_survive_decoding(processor: Qwen2_5_VLProcessor):
    tokenizer = processor.tokenizer
    for token in (*SPECIAL_TOKENS, *TAGS, *(f" {order}" for order in ORDERS)):
        assert len(tokenizer.encode(token)) == 1, token
    ids = tokenizer.encode(ANSWER)
    assert len(ids) == 16
    assert tokenizer.decode(ids, skip_special_tokens=True) == ANSWER.removesuffix("<|im_end|>")
    assert tokenizer.decode(tokenizer.encode("any text: żółw 世界 <1>")) == "any text: żółw 世界 <1>"


def test_prompts_have_qwens_format_and_four_tokens_an_image(processor: Qwen2_5_VLProcessor, batch: Batch):
    row = make_rows(6, seed=11)[1]
    text = prompt_text(processor, row.problem)
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    body = row.problem.replace("<image>", picture)
    assert text == f"<|im_start|>user\n{body}<|im_end|>\n<|im_start|>assistant\n"
    assert int(batch.token_types[1].sum()) == 4 * len(row.images)


def test_vision_in_one_go_equals_transformers_loop(model: Qwen2_5_VLForConditionalGeneration, batch: Batch):
    theirs = model.model.visual(batch.pixel_values, grid_thw=batch.grid).pooler_output
    assert batch.pixel_values is not None
    torch.testing.assert_close(vision_features(model, batch.pixel_values), theirs, rtol=1e-4, atol=1e-5)


def test_loss_equals_transformers_loss(model: Qwen2_5_VLForConditionalGeneration, batch: Batch):
    theirs = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        image_grid_thw=batch.grid,
        mm_token_type_ids=batch.token_types,
        labels=batch.labels,
    ).loss
    torch.testing.assert_close(loss_of(model, batch), theirs, rtol=1e-4, atol=1e-5)


def test_generation_equals_transformers_generation(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor
):
    rows = make_rows(6, seed=12)
    images = [image for row in rows for image in row.images]
    batch = encode(processor, [prompt_text(processor, row.problem) for row in rows], [""] * 6, images)
    theirs = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        image_grid_thw=batch.grid,
        mm_token_type_ids=batch.token_types,
        max_new_tokens=24,
        do_sample=False,
    )[:, batch.input_ids.shape[1] :]
    end = processor.tokenizer.eos_token_id
    for ours, reference in zip(generate(model, batch).tolist(), theirs.tolist(), strict=True):
        assert end in reference
        assert ours[: ours.index(end)] == reference[: reference.index(end)]


def test_checkpoint_knows_the_tasks_by_one_scene_and_has_room_to_grow_on_the_demos(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor
):
    seen, unseen = (
        accuracy(model, processor, make_rows(240, seed=13, scenes=(scene,))) for scene in (IMITATED, UNSEEN)
    )
    assert all(mark > 0.4 for mark in seen.values()), seen
    assert 0.25 < sum(unseen.values()) / 3 < 0.5, unseen


def test_a_new_model_survives_saving(tmp_path: Path):
    texts = [row.problem for row in make_rows(30, seed=0)]
    new_processor = build_processor(texts)
    new_model = build_model(new_processor.tokenizer, seed=0)
    save(new_model, new_processor, tmp_path)
    loaded = load(tmp_path)
    row = make_rows(1, seed=0)[0]
    batch = encode(AutoProcessor.from_pretrained(tmp_path), [row.problem.replace("<image>", "")], [""], [])
    with torch.inference_mode():
        for ours, theirs in zip(embed(new_model, batch), embed(loaded, batch), strict=True):
            torch.testing.assert_close(ours, theirs)
