"""Estimates of memory: what follows from a recipe, and what counts of real models say."""

from pathlib import Path
from typing import Any

import pytest
from support.doctor import GIB, probed, settings

from tpru_verl.doctor import machine, memory, room
from tpru_verl.doctor.check import OK
from tpru_verl.shapes import SHAPES, shape_of


def test_what_follows_from_the_recipe() -> None:
    shape = SHAPES["Qwen/Qwen2.5-VL-7B-Instruct"]
    base = memory.estimate(settings(), shape, prompt_tokens=700)
    assert base.states == shape.parameters * 16 // 8
    assert base.logits == 4 * 1724 * 152064 * 8
    assert base.checkpoint == shape.parameters * 12
    half = memory.estimate(settings(micro_batch=2), shape, prompt_tokens=700)
    assert (half.activations, half.logits) == (base.activations // 2, base.logits // 2)
    moved = memory.estimate(settings(params_offload=True, optimizer_offload=True), shape)
    assert moved.resident == 0 < base.resident
    assert moved.host - base.host == shape.parameters * 12
    whole = memory.estimate(settings(gradient_checkpointing=False), shape, prompt_tokens=700)
    assert whole.activations > 10 * base.activations
    assert base.sequences(80 * GIB, 0.6, 8024) > 0 > base.sequences(8 * GIB, 0.6, 8024)
    streamed = memory.estimate(settings(offload_policy=True), shape)
    assert (streamed.states, streamed.resident, streamed.adam_step) == (0, 0, 0)
    assert streamed.host - base.host == shape.parameters * 16
    fused = memory.estimate(settings(fused_kernels=True), shape, prompt_tokens=700)
    assert fused.logits == memory.FUSED_TOKENS * 152064 * 8


@pytest.mark.parametrize("trainer", ["veRL", "EasyR1"])
@pytest.mark.parametrize(("size", "copies"), [(-1, 1), (8, 1), (16, 1), (2, 4), (1, 8)])
def test_states_are_shared_by_the_gpus_of_a_shard_group_alone(trainer: str, size: int, copies: int) -> None:
    shape = SHAPES["Qwen/Qwen2.5-VL-7B-Instruct"]
    base = memory.estimate(settings(trainer, optimizer_offload=True), shape)
    found = memory.estimate(settings(trainer, optimizer_offload=True, fsdp_size=size), shape)
    assert found.states == shape.parameters * 16 * copies // 8
    assert found.adam_step == base.adam_step * copies
    assert found.host - base.host == shape.parameters * 8 * (copies - 1)  # moments, of all GPUs


def test_a_dynamic_batch_is_filled_with_tokens() -> None:
    shape = SHAPES["Qwen/Qwen2.5-VL-7B-Instruct"]

    def logits(tokens: int) -> int:
        dynamic = settings(dynamic_batch=True, micro_batch=None, micro_tokens=tokens)
        return memory.estimate(dynamic, shape, prompt_tokens=700).logits // (152064 * 8)

    assert logits(65536) == 65536
    assert logits(1000) == 1724  # one sequence at least
    assert logits(10**6) == 80 * 1724  # all of an update


@pytest.mark.parametrize(
    ("model", "tensor_parallel", "bytes_a_token"),
    [("3B", 1, 36864), ("3B", 2, 18432), ("3B", 4, 18432), ("7B", 4, 14336), ("7B", 8, 14336)],
)
def test_a_gpu_has_one_key_value_head_at_least(model: str, tensor_parallel: int, bytes_a_token: int) -> None:
    """vLLM repeats them; 3B has two of them, 7B four."""
    shape = SHAPES[f"Qwen/Qwen2.5-VL-{model}-Instruct"]
    found = memory.estimate(settings(tensor_parallel=tensor_parallel), shape)
    assert found.kv_token == bytes_a_token


def test_samples_of_a_prompt_share_its_tokens() -> None:
    """As `plugin/prefixes.py` lays them out; one H100 allocated 22.4 GiB (benchmarks/RESULTS.md, gpu)."""
    from tpru_verl.plugin import prefixes

    shape = SHAPES["Qwen/Qwen2.5-VL-3B-Instruct"]
    short: dict[str, Any] = {"remove_padding": False, "attention": "sdpa", "response_length": 400}

    def tokens(samples: int, **changes: Any) -> int:
        return memory.update_tokens(settings(**{**short, **changes}), shape, 850, samples)

    assert settings().integer("n") == 5
    assert tokens(5) == 850 + 5 * 400
    assert tokens(10) == 2 * tokens(5)
    assert tokens(4) == 4 * 1250  # maybe of four prompts
    # One row would cost more than it saves.
    assert tokens(5, response_length=1300) == 2 * (850 + 3 * 1300)
    assert memory.MOST_PAIRS == prefixes.MOST_PAIRS
    assert tokens(5, response_length=2550) == 5 * 3400  # no row pays
    apart = ({"attention": None}, {"remove_padding": True}, {"n": 1}, {"fused_kernels": True})
    for change in (*apart, {"batch": 63, "gpus": 8}):
        assert tokens(5, **change) == 5 * 1250
    qwen35 = SHAPES["Qwen/Qwen3.5-4B"]
    assert memory.update_tokens(settings(**short), qwen35, 850, 5) == 5 * 1250
    lora = {**short, "lora_rank": 64, "gpus": 1, "micro_batch": 10}
    found = memory.estimate(settings(**lora), shape, prompt_tokens=850)
    assert 22.4 < (found.update - memory.RESERVE) / GIB < 28


@pytest.mark.parametrize(
    ("change", "gpu", "better"),
    [
        ({"micro_batch": 2}, 80, 20),
        ({"micro_batch": 2}, 45, 5),
        ({"micro_batch": 2}, 24, 0),
        ({"micro_batch": 5}, 80, 0),
        ({"micro_batch": 2, "n": 2}, 80, 0),
    ],
)
def test_a_micro_batch_of_whole_groups_is_suggested_where_it_fits(
    change: dict[str, Any], gpu: float, better: int
) -> None:
    one = {"gpus": 1, "tensor_parallel": 1, "mini_batch": 32, "lora_rank": 64, "checkpoints": "x"}
    told = settings(model="Qwen/Qwen2.5-VL-3B-Instruct", **one, **change)
    lines = room.memory_lines(told, machine.Machine(None, probed()), 700, gpu)
    found = [line for line in lines if line.check == "micro-batch"]
    assert [line.status for line in found] == [OK] * bool(better)
    assert all(f"ppo_micro_batch_size_per_gpu={better} fits" in line.found for line in found)


def test_a_3b_model_on_one_gpu() -> None:
    """Logits without packing have 12 bytes, and AdamW that is not fused 4 a parameter for a moment."""
    shape = SHAPES["Qwen/Qwen2.5-VL-3B-Instruct"]
    packed = memory.estimate(settings(), shape, prompt_tokens=700)
    padded = memory.estimate(settings(remove_padding=False), shape, prompt_tokens=700)
    assert 2 * padded.logits == 3 * packed.logits
    # Five sequences of 535 and 400 tokens, as benchmarks/gpu_update.py has them.
    one = {
        "gpus": 1,
        "tensor_parallel": 1,
        "micro_batch": 5,
        "remove_padding": False,
        "response_length": 400,
    }
    plain = memory.estimate(settings(**one), shape, prompt_tokens=535)
    fused = memory.estimate(settings(**one, optimizer_options={"fused": True}), shape, prompt_tokens=535)
    beside = memory.RESERVE
    assert 69 < (plain.update - beside) / GIB < 71
    assert 65 < (fused.update - beside) / GIB < 67
    assert fused.adam_step == 0
    assert memory.estimate(settings("EasyR1", gpus=1, micro_batch=1), shape, prompt_tokens=700).adam_step == 0


def test_adapters_are_what_peft_makes_of_the_model(checkpoint: Path) -> None:
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint))
    asked = peft.LoraConfig(r=4, target_modules="all-linear", exclude_modules=r".*\.visual\..*")
    made = peft.get_peft_model(model, asked)
    shape = shape_of(str(checkpoint))
    assert shape is not None
    counted = sum(each.numel() for each in made.parameters() if each.requires_grad)
    assert memory.adapter_parameters(settings(lora_rank=4), shape) == counted > 0


@pytest.mark.parametrize(("dtype", "bytes_each"), [("fp32", 4), ("bf16", 2)])
def test_lora_has_gradients_and_moments_of_the_adapters_alone(dtype: str, bytes_each: int) -> None:
    shape = SHAPES["Qwen/Qwen3-VL-4B-Instruct"]
    lora = settings(lora_rank=16, gpus=1, tensor_parallel=1, model_dtype=dtype)
    found = memory.estimate(lora, shape)
    assert found.trained < shape.parameters / 50
    assert found.states == bytes_each * (shape.parameters + 4 * found.trained)
    assert found.adam_step == bytes_each * found.trained
    assert found.host < 2.1 * shape.parameters + 2 * GIB  # vLLM's sleeping weights, no reference model
    # To hand a model with adapters to vLLM, veRL loads the whole of it.
    moved = memory.estimate(
        settings(lora_rank=16, gpus=1, tensor_parallel=1, model_dtype=dtype, params_offload=True), shape
    )
    assert moved.rollout(GIB, 0.5) >= (bytes_each + 2) * shape.parameters


def test_an_expert_that_a_token_does_not_reach_has_no_activations() -> None:
    dense = SHAPES["Qwen/Qwen3-VL-4B-Instruct"]
    many = dense._replace(intermediate=dense.intermediate // 8, experts=128, experts_a_token=8)
    assert memory.activation_bytes(many, 1000) == memory.activation_bytes(dense, 1000)
    assert memory.estimate(settings(), many).states > 4 * memory.estimate(settings(), dense).states


def test_linear_attention_has_a_state_a_sequence_and_a_cache_in_every_fourth_layer() -> None:
    shape = SHAPES["Qwen/Qwen3.5-4B"]
    assert memory.kv_bytes(shape) == 2 * 8 * 4 * 256 * 2
    assert memory.state_bytes(shape) == 24 * (32 * 128 * 128 + 3 * 8192) * 4
    assert memory.state_bytes(SHAPES["Qwen/Qwen3-VL-4B-Instruct"]) == 0


@pytest.mark.parametrize(
    ("change", "bytes_each"),
    [
        ({}, 12),
        ({"save_contents": ["model"]}, 4),
        ({"save_contents": ["model", "optimizer", "extra"]}, 12),
        ({"save_contents": ["hf_model"]}, 2),
        ({"save_contents": ["model"], "model_dtype": "bf16"}, 2),
        ({"fsdp_size": 4}, 24),  # both groups of four GPUs write
    ],
)
def test_a_checkpoint_has_what_the_recipe_saves(change: dict[str, Any], bytes_each: int) -> None:
    shape = SHAPES["Qwen/Qwen2.5-VL-7B-Instruct"]
    assert memory.estimate(settings(**change), shape).checkpoint == shape.parameters * bytes_each


def test_easyr1_may_save_the_model_alone() -> None:
    shape = SHAPES["Qwen/Qwen2.5-VL-7B-Instruct"]
    alone = memory.estimate(settings("EasyR1", save_model_only=True), shape)
    assert alone.checkpoint == shape.parameters * 4
