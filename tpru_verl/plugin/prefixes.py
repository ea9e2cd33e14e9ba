"""A patch of veRL's FSDP engine: training computes a prompt once for all of its samples.

Stock veRL 0.9.1 runs the model over prompt and response of each sample apart, so the prompt of 8 samples is
computed 8 times, forward and backward. With the patch, samples of one prompt in a micro-batch share a row:
the prompt, then the responses one after the other. A mask keeps each response from seeing the others, and
each keeps the positions that it has alone. Log-probabilities, losses and gradients stay the same.

The attention must take such a mask: `sdpa` and `eager` do, flash-attn does not. veRL's own setting for this,
`actor.use_prefix_grouper`, is read by its former trainer alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from tpru_verl.plugin.hooks import replace, require

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDict

KEY = "tpru_rows"
# Families whose language model is causal attention alone; Qwen3.5's linear attention takes no mask.
MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# Flags of a micro-batch with which stock veRL goes another way, or needs outputs for tokens of the prompt.
_FLAGS = ("use_remove_padding", "use_fused_kernels", "calculate_sum_pi_squared", "distillation_use_topk")
_FLAGS += ("distillation_only", "return_model_output")
# A row's attention costs its length squared: at most so many times what the samples cost apart.
MOST_PAIRS = 2.0


class Rows(NamedTuple):
    """Samples of a micro-batch in rows of one prompt each. Integers, [rows, tokens of the longest row].

    source: the token's place in the values of the nested `input_ids`; 0 in padding.
    part: 0 in the prompt, k in the k-th response of the row, -1 in padding.
    logits: for each token of the responses, the place of the logits that predict it, in rows x tokens.
    places: for each token of the responses, its place less 1 in the values of the nested `input_ids`.
    firsts: a sample of each row.
    """

    source: torch.Tensor
    part: torch.Tensor
    logits: torch.Tensor
    places: torch.Tensor
    firsts: list[int]


def share_prompts(transformer_impl: ModuleType) -> None:
    """Have the FSDP engine compute a prompt once for all of its samples in a micro-batch."""
    import torch
    from torch.utils.checkpoint import checkpoint
    from verl.utils import tensordict_utils as tu

    engine = transformer_impl.FSDPEngineWithLMHead
    require(engine, "prepare_model_inputs", "prepare_model_outputs")
    require(transformer_impl, "extract_multi_modal_inputs", "logprobs_from_logits", "verl_F")
    inputs_of, outputs_of = engine.prepare_model_inputs, engine.prepare_model_outputs

    def flag(batch: TensorDict, name: str, default: object) -> Any:
        return tu.get_non_tensor_data(data=batch, key=name, default=default)

    def prepare_model_inputs(self: Any, micro_batch: TensorDict):
        # The critic's engine is a subclass: its outputs are of all tokens.
        apart = type(self).prepare_model_outputs is not prepare_model_outputs or self.use_ulysses_sp
        apart = apart or any(flag(micro_batch, name, name == "use_remove_padding") for name in _FLAGS)
        config = self.model_config.hf_config
        apart = apart or not takes_mask(config) or shows_pictures(micro_batch, config)
        rows = None if apart else rows_of(micro_batch)
        if rows is None:
            return inputs_of(self, micro_batch)
        images = micro_batch.get("multi_modal_inputs", [])
        inputs = row_inputs(rows, micro_batch, flag(micro_batch, "pad_token_id", 0))
        dtype = getattr(self, "_autocast_dtype", torch.bfloat16)
        inputs["attention_mask"] = mask_of(rows, config, dtype)
        inputs |= transformer_impl.extract_multi_modal_inputs([images[i] for i in rows.firsts if len(images)])
        return inputs, {KEY: rows}

    def prepare_model_outputs(
        self: Any, output: Any, output_args: dict, micro_batch: TensorDict, logits_processor_func: Any
    ):
        rows = output_args.get(KEY)
        if rows is None:
            return outputs_of(self, output, output_args, micro_batch, logits_processor_func)
        logits = output.logits.flatten(0, 1)[rows.logits]
        logits = logits / _temperature(micro_batch).to(logits)
        labels = micro_batch["responses"].values()
        found = {"log_probs": transformer_impl.logprobs_from_logits(logits=logits, labels=labels)}
        if flag(micro_batch, "calculate_entropy", False):
            entropy = transformer_impl.verl_F.entropy_from_logits
            again = self.engine_config.entropy_checkpointing  # computed again in the backward pass
            found["entropy"] = checkpoint(entropy, logits, use_reentrant=False) if again else entropy(logits)
        return {name: nested(values, rows, micro_batch["input_ids"]) for name, values in found.items()}

    replace(engine, "prepare_model_inputs", prepare_model_inputs)
    replace(engine, "prepare_model_outputs", prepare_model_outputs)


def takes_mask(config: Any) -> bool:
    """Whether the language model's attention is full and takes a mask of queries and keys."""
    text = config.get_text_config()
    return (
        config.model_type in MODELS
        and text._attn_implementation in ("sdpa", "eager")
        and set(getattr(text, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    )


def shows_pictures(batch: TensorDict, config: Any) -> bool:
    """Whether a response holds pictures, as of a tool: a row keeps those of one of its samples alone."""
    responses: Any = batch.get("responses", None)
    tokens = [getattr(config, name, None) for name in ("image_token_id", "video_token_id")]
    return responses is not None and any((responses == token).any() for token in tokens if token is not None)


def rows_of(batch: TensorDict) -> Rows | None:
    """The rows for a micro-batch; None where no prompt is shared, or its rows would be too long to pay.

    None as well where a sample is not its prompt and its response, one after the other.
    """
    if not all(name in batch and batch[name].is_nested for name in ("prompts", "responses", "input_ids")):
        return None
    prompts, responses = (_lengths(batch[name]) for name in ("prompts", "responses"))
    apart = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    if apart != _lengths(batch["input_ids"]):
        return None
    groups = list(_groups(batch))
    most = max(len(group) for group in groups)
    while most > 1:
        members = [group[at : at + most] for group in groups for at in range(0, len(group), most)]
        longest = max(prompts[row[0]] + sum(responses[i] for i in row) for row in members)
        pairs = len(members) * longest**2
        if pairs <= MOST_PAIRS * len(apart) * max(apart) ** 2 and len(members) * longest < sum(apart):
            return _laid_out(members, prompts, responses, longest, batch["input_ids"].device)
        most = (most + 1) // 2
    return None


def _groups(batch: TensorDict) -> Iterator[list[int]]:
    """The samples of each prompt: equal tokens and equal images, in the order of their first samples."""
    images = batch.get("multi_modal_inputs", None)
    found: dict[tuple[int, ...], list[list[int]]] = {}
    tokens, at = batch["prompts"].values().tolist(), 0
    for sample, length in enumerate(_lengths(batch["prompts"])):
        groups = found.setdefault(tuple(tokens[at : at + length]), [])
        at += length
        for group in groups:
            if images is None or _same(images[group[0]], images[sample]):
                group.append(sample)
                break
        else:
            groups.append([sample])
    for groups in found.values():
        yield from groups


def _lengths(ids: Any) -> list[int]:
    return ids.offsets().diff().tolist()


def _same(one: Any, other: Any) -> bool:
    import torch

    one, other = (getattr(value, "data", value) or {} for value in (one, other))
    return one.keys() == other.keys() and all(
        value is other[key]
        or (
            value.shape == other[key].shape
            and (value.data_ptr() == other[key].data_ptr() or torch.equal(value, other[key]))
        )
        for key, value in one.items()
    )


def _laid_out(
    members: list[list[int]], prompts: list[int], responses: list[int], longest: int, device: torch.device
) -> Rows:
    import torch

    lengths = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    starts = [0, *accumulate(lengths)]  # of the samples in the values of the nested tensors
    source, part = [], []
    logits, places = [[] for _ in lengths], [[] for _ in lengths]
    for row, samples in enumerate(members):
        prompt = prompts[samples[0]]
        tokens, parts = [*range(starts[samples[0]], starts[samples[0]] + prompt)], [0] * prompt
        for number, i in enumerate(samples, start=1):
            begin, first = row * longest + len(tokens), starts[i] + prompt
            # The prompt's last token predicts the first of each response; an empty one has none.
            logits[i] = [row * longest + prompt - 1, *range(begin, begin + responses[i] - 1)][: responses[i]]
            places[i] = [*range(first - 1, first - 1 + responses[i])]
            tokens += range(first, first + responses[i])
            parts += [number] * responses[i]
        source.append(tokens + [0] * (longest - len(tokens)))
        part.append(parts + [-1] * (longest - len(parts)))
    flat = ([place for sample in every for place in sample] for every in (logits, places))
    made = (torch.tensor(values, device=device) for values in (source, part, *flat))
    return Rows(*made, firsts=[row[0] for row in members])


def row_inputs(rows: Rows, batch: TensorDict, pad: int) -> dict[str, torch.Tensor]:
    """Token ids [rows, tokens] and position ids, [rows, tokens] or with mRoPE [4, rows, tokens]."""
    padding = rows.part < 0
    positions = batch["position_ids"].values()[..., rows.source]
    return {
        "input_ids": batch["input_ids"].values()[rows.source].masked_fill(padding, pad),
        "position_ids": positions.masked_fill(padding, 0),
    }


def mask_of(rows: Rows, config: Any, dtype: torch.dtype) -> torch.Tensor:
    """Which keys a query sees, [rows, 1, queries, keys]: True for `sdpa`, added to the scores for `eager`."""
    import torch

    query, key = rows.part.unsqueeze(2), rows.part.unsqueeze(1)
    seen = ((key == 0) | (key == query)).tril().unsqueeze(1)
    if config.get_text_config()._attn_implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def nested(values: torch.Tensor, rows: Rows, like: Any) -> torch.Tensor:
    """Values of the responses' tokens, each a place earlier as veRL has them, nested as `like`; else 0."""
    import torch

    every = values.new_zeros(like.values().shape[0]).index_put((rows.places,), values)
    return torch.nested.nested_tensor_from_jagged(every, like.offsets())


def _temperature(batch: TensorDict) -> torch.Tensor:
    """Of each token of the responses, [tokens, 1]."""
    import torch

    responses: Any = batch["responses"]
    lengths, found = responses.offsets().diff(), batch["temperature"]
    each = found if isinstance(found, torch.Tensor) else torch.full((len(lengths),), float(found))
    return each.to(lengths.device).clamp(min=1e-8).repeat_interleave(lengths).unsqueeze(-1)
