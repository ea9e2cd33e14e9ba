"""Samples of a prompt share a row in the update: log-probabilities and gradients are those of stock veRL."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl")
import torch
from support.tiny_models import TinyModels
from support.verls_forward import give_verls_forward
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transformers import AutoConfig, AutoModelForImageTextToText
from verl.utils import tensordict_utils as tu
from verl.utils import torch_functional
from verl.workers.engine.fsdp import transformer_impl

from tpru_verl.plugin import prefixes

Engine: Any = transformer_impl.FSDPEngineWithLMHead
Stack: Any = NonTensorStack
GRID = torch.tensor([[1, 4, 4]])  # 4 visual tokens
RESPONSES = (3, 5, 1, 4, 2, 6)
PROMPT_OF = (0, 1, 0, 0, 1, 2)  # prompt 2 has the tokens of prompt 0 and another picture


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def micro_batch(config: Any, prompt_of: tuple[int, ...] = PROMPT_OF, **flags: object) -> TensorDict:
    """Samples of RESPONSES tokens and of three prompts of 16 and 13 tokens, with a picture each."""
    drawn = torch.Generator().manual_seed(0)
    vision = config.vision_config
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = [torch.randn(16, values, generator=drawn) for _ in range(3)]
    words = torch.randint(5, 200, (12,), generator=drawn)
    image = torch.full((4,), config.image_token_id)
    prompts = [torch.cat([words, image]), torch.cat([words[:4], image, words[:5]]), torch.cat([words, image])]
    responses = [torch.randint(5, 200, (n,), generator=drawn) for n in RESPONSES[: len(prompt_of)]]
    whole = [torch.cat([prompts[p], response]) for p, response in zip(prompt_of, responses, strict=True)]
    # Any positions will do that differ from those of plain text.
    places = [torch.stack([torch.arange(len(ids)) // part for part in (1, 1, 2, 3)]) for ids in whole]
    offsets = torch.tensor([0, *(len(ids) for ids in whole)]).cumsum(0)
    data = TensorDict(
        {
            "prompts": nested([prompts[p] for p in prompt_of]),
            "responses": nested(responses),
            "input_ids": nested(whole),
            "position_ids": torch.nested.nested_tensor_from_jagged(
                torch.cat(places, dim=1), offsets=offsets, jagged_dim=2
            ),
            "multi_modal_inputs": Stack(
                # A copy, as after a transfer.
                *(
                    NonTensorData({"pixel_values": pixels[p].clone(), "image_grid_thw": GRID})
                    for p in prompt_of
                )
            ),
        },
        batch_size=len(prompt_of),
    )
    given = {"use_remove_padding": False, "temperature": 0.7, "calculate_entropy": True, "pad_token_id": 0}
    tu.assign_non_tensor(data, **{**given, **flags})
    return data


def engine_of(model: Any, kind: type = Engine) -> Any:
    engine = object.__new__(kind)
    engine.module, engine.use_ulysses_sp, engine.pad_to_length = model, False, False
    engine.model_config = SimpleNamespace(hf_config=model.config)
    engine.engine_config = SimpleNamespace(entropy_checkpointing=False)
    engine._autocast_dtype = torch.float32
    return engine


def passed(
    model: Any, batch: TensorDict, inputs_of: Any, outputs_of: Any, *, entropy_checkpointing: bool = False
) -> dict[str, Any]:
    """A forward and a backward pass: the responses' values, gradients, and the tokens that were computed."""
    engine = engine_of(model)
    engine.engine_config.entropy_checkpointing = entropy_checkpointing
    model.zero_grad()
    inputs, args = inputs_of(engine, micro_batch=batch)
    found = outputs_of(engine, model(**inputs, use_cache=False), args, batch, None)
    ids: dict[str, Any] = {name: batch[name] for name in ("input_ids", "responses")}
    ends, lengths = ids["input_ids"].offsets()[1:], ids["responses"].offsets().diff()
    chosen = torch.cat([torch.arange(e - n - 1, e - 1) for e, n in zip(ends, lengths, strict=True)])
    values = torch.cat([found[name].values()[chosen] for name in ("log_probs", "entropy")])
    (values * torch.linspace(-1, 2, len(values))).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"values": values.detach(), "gradients": gradients, "tokens": inputs["input_ids"].numel()}


STOCK = (Engine.prepare_model_inputs, Engine.prepare_model_outputs)
if "share_prompts" in STOCK[0].__qualname__:  # the plugin has been at work in this process
    STOCK = tuple(
        next(
            c.cell_contents
            for c in f.__closure__
            if getattr(c.cell_contents, "__qualname__", "").startswith("FSDP")
        )
        for f in STOCK
    )


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    for function in STOCK:
        monkeypatch.setattr(Engine, function.__name__, function)
    prefixes.share_prompts(transformer_impl)
    return Engine.prepare_model_inputs, Engine.prepare_model_outputs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", prefixes.MODELS)
def test_values_and_gradients_are_those_of_stock_verl(
    model_type: str,
    attention: str,
    tiny_model: TinyModels,
    ours: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(
        tiny_model(model_type), attn_implementation=attention, dtype=torch.float32
    )
    give_verls_forward(model, monkeypatch)
    batch = micro_batch(model.config)
    alone, shared = passed(model, batch, *STOCK), passed(model, batch, *ours)
    assert shared["tokens"] < 0.8 * alone["tokens"]
    torch.testing.assert_close(shared["values"], alone["values"], rtol=1e-5, atol=1e-5)
    assert shared["gradients"].keys() == alone["gradients"].keys()
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(shared["gradients"][name], gradient, rtol=1e-4, atol=1e-5)


def test_rows_are_short_enough_to_pay(tiny_model: TinyModels) -> None:
    config = AutoConfig.from_pretrained(tiny_model(prefixes.MODELS[0]))
    rows = prefixes.rows_of(micro_batch(config, (0, 0, 0, 0, 0, 0)))
    assert rows is not None
    apart, longest = sum(16 + n for n in RESPONSES), 16 + max(RESPONSES)
    assert rows.part.numel() < apart
    assert rows.part.shape[0] * rows.part.shape[1] ** 2 <= prefixes.MOST_PAIRS * len(RESPONSES) * longest**2
    assert prefixes.rows_of(micro_batch(config, (0, 1, 2))) is None


def test_a_response_may_be_empty() -> None:
    """An agent loop that was aborted has one."""
    responses = [[7, 8], [], [9]]
    offsets = torch.tensor([0, 2, 2, 3])
    prompts = torch.arange(6).repeat(3)
    batch = TensorDict(
        {
            "prompts": torch.nested.nested_tensor_from_jagged(prompts, offsets=torch.tensor([0, 6, 12, 18])),
            "responses": torch.nested.nested_tensor_from_jagged(torch.tensor([7, 8, 9]), offsets=offsets),
            "input_ids": nested([torch.tensor([*range(6), *response]) for response in responses]),
        },
        batch_size=3,
    )
    rows = prefixes.rows_of(batch)
    assert rows is not None
    assert rows.source[0].tolist() == [*range(6), 6, 7, 20]
    assert rows.logits.tolist() == [5, 6, 5]
    assert rows.places.tolist() == [5, 6, 19]


def test_samples_that_are_more_than_prompt_and_response_stay_apart(tiny_model: TinyModels) -> None:
    batch = micro_batch(AutoConfig.from_pretrained(tiny_model(prefixes.MODELS[0])))
    ids: Any = batch["input_ids"]
    assert prefixes.rows_of(batch) is not None
    batch["input_ids"] = nested([torch.cat([row, row[:1]]) for row in ids.unbind()])
    assert prefixes.rows_of(batch) is None


@pytest.mark.parametrize("token", ["image_token_id", "video_token_id"])
def test_samples_with_pictures_in_a_response_stay_apart(
    token: str, tiny_model: TinyModels, ours: tuple[Any, Any]
) -> None:
    """Those of a tool: samples of a prompt with equal pictures each have their own."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_model("qwen2_vl"), attn_implementation="eager")
    batch = micro_batch(model.config)
    assert ours[0](engine_of(model), micro_batch=batch)[0]["input_ids"].shape[0] < len(PROMPT_OF)
    for name in ("responses", "input_ids"):
        ids: Any = batch[name]
        ids.values()[-1] = getattr(model.config, token)
    assert ours[0](engine_of(model), micro_batch=batch)[0]["input_ids"].shape[0] == len(PROMPT_OF)


def test_entropy_is_computed_again_in_the_backward_pass_where_a_recipe_asks_for_it(
    tiny_model: TinyModels, ours: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(
        tiny_model("qwen2_vl"), attn_implementation="eager", dtype=torch.float32
    )
    give_verls_forward(model, monkeypatch)
    batch, calls = micro_batch(model.config), []
    entropy = torch_functional.entropy_from_logits
    monkeypatch.setattr(
        torch_functional, "entropy_from_logits", lambda logits: calls.append(1) or entropy(logits)
    )
    kept = passed(model, batch, *ours)
    assert calls == [1]
    again = passed(model, batch, *ours, entropy_checkpointing=True)
    assert calls == [1, 1, 1]
    torch.testing.assert_close(again["values"], kept["values"])
    for name, gradient in kept["gradients"].items():
        torch.testing.assert_close(again["gradients"][name], gradient)


def test_flags_that_stock_verl_answers(tiny_model: TinyModels, ours: tuple[Any, Any]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_model("qwen2_vl"), attn_implementation="eager")
    batch = micro_batch(model.config, calculate_sum_pi_squared=True)
    assert ours[0](engine_of(model), micro_batch=batch)[0]["input_ids"].shape[0] == len(PROMPT_OF)
