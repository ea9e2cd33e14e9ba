"""Estimates the memory of a run from the shape of its model and the settings of its recipe; loads nothing.

A GPU holds the actor's states under full sharding, activations, logits and the temporaries of the optimizer;
in the rollout it holds what the recipe gives to vLLM. The host holds offloaded states and the pixels of the
images. The estimate leaves out fragmentation and Ray's object store, and allows 3 GiB a GPU (`RESERVE`) for
the buffers of NCCL and the CUDA context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tpru_verl import trainers
from tpru_verl.shapes import Shape

if TYPE_CHECKING:
    from tpru_verl.launch.settings import Settings

GIB = 1024**3
# CUDA context, NCCL, cuBLAS workspaces and what vLLM keeps asleep: an allowance, not a measurement.
RESERVE = 3 * GIB
# Bytes a parameter. FSDP keeps fp32 weights, as both trainers load them; with fp32 gradients and Adam's two
# moments the 16 of Rajbhandari et al. 2020 (ZeRO), section 3.1.
WEIGHT, GRADIENT, ADAM, HALF = 4, 4, 8, 2
# Bytes of a logit: bf16, its gradient, one fp32 copy for the log-probabilities. Without packing veRL copies
# the logits of each sequence together, which is a bf16 copy and its gradient more.
LOGIT, LOGIT_UNPACKED = 2 + 2 + 4, 2 + 2 + 4 + 2 + 2
# As in `plugin/prefixes.py`, whose package loads the plugin (tests/doctor/test_memory.py compares).
MOST_PAIRS = 2.0
# Tokens whose logits veRL's fused kernels have at once (0.9.1, `utils/experimental/torch_functional.py`).
FUSED_TOKENS = 512


def patch_bytes(shape: Shape) -> int:
    """Of a row of Qwen-VL's `pixel_values`: 3 colours x 2 frames of a patch, in fp32."""
    return 3 * 2 * shape.patch**2 * 4


def kv_bytes(shape: Shape, tensor_parallel: int = 1) -> int:
    """Of vLLM's cache for one token, in bf16: keys and values of each layer with full attention.

    On one of `tensor_parallel` GPUs. Where they are more than the heads, vLLM repeats heads.
    """
    heads = max(1, shape.kv_heads // tensor_parallel)
    return 2 * shape.kv_layers * heads * shape.head_dim * HALF


def state_bytes(shape: Shape) -> int:
    """Of vLLM's cache for one sequence of any length: the states of linear attention, in fp32."""
    net = shape.delta_net
    return net.layers * net.state * WEIGHT if net else 0


def activation_bytes(shape: Shape, tokens: int, *, checkpointing: bool = True) -> int:
    """Bytes for `tokens` of a micro-batch: with checkpointing each layer's input and one layer in full.

    A layer in full after Korthikanti et al. 2022 (Reducing Activation Recomputation), section 4.1, without
    the scores, which FlashAttention does not keep: 11 h for attention, 4 h for norms, and for a gated MLP
    2 h + 8 i, in bf16 as there. A layer with linear attention is counted the same.
    """
    wide = shape.intermediate * max(1, shape.experts_a_token) + shape.shared_intermediate
    layer = 17 * shape.hidden + 8 * wide
    kept = shape.layers * HALF * shape.hidden + layer if checkpointing else shape.layers * layer
    return tokens * kept


def adapter_parameters(recipe: Settings, shape: Shape) -> int:
    """Of LoRA on the linear modules of the language model; 0 where all weights are trained.

    An adapter of rank r of a module from a to b numbers has r (a + b) parameters. With `all-linear` PEFT
    leaves out the head; adapters of the vision tower, which a recipe may ask for, are not counted.
    """
    rank = recipe.integer("lora_rank")
    return rank * sum((rows + columns) * number for rows, columns, number in shape.matrices)


def gathered_bytes(shape: Shape) -> int:
    """Of the weights that FSDP has gathered in bf16 beside the logits: the head, and the last layer, which
    the backward pass needs next. veRL 0.9.1 shards layer by layer (`apply_fsdp2`)."""
    words = shape.vocabulary * shape.hidden
    layers = shape.parameters - shape.vision_parameters - words * (1 if shape.tied else 2)
    return HALF * (words + layers // shape.layers)


@dataclass(frozen=True)
class Estimate:
    """Bytes. `update` and `rollout` are the peaks of one GPU in the two phases; vLLM sleeps in the first."""

    parameters: int
    trained: int  # parameters; those of the adapters alone with LoRA
    states: int  # of the actor on one GPU in the update: weights, gradients, moments of Adam
    resident: int  # the part of the states that stays on the GPU beside vLLM
    syncing: int  # the part of the states that is there while vLLM gets its weights
    gathered: int  # weights that come from the shards for a moment
    activations: int
    logits: int
    adam_step: int  # temporaries of the optimizer's step, when activations and logits are gone
    vllm_weights: int  # on one GPU
    kv_token: int  # of vLLM's cache for a token, on one GPU
    kv_sequence: int  # of vLLM's cache for a sequence of any length, on one GPU
    host: int  # of one node
    host_states: int  # the part of it that offloading brings there
    host_images: int  # the part of it that grows with the batch
    checkpoint: int  # on disk

    @property
    def update(self) -> int:
        return self.states + max(self.gathered + self.activations + self.logits, self.adam_step) + RESERVE

    def rollout(self, gpu: int, utilization: float) -> int:
        """Of a GPU with `gpu` bytes, when vLLM takes the share `utilization` of them."""
        syncing = self.syncing + self.vllm_weights + RESERVE
        return max(self.resident + int(gpu * utilization), syncing)

    def sequences(self, gpu: int, utilization: float, tokens: int) -> int:
        """Sequences of that many tokens in vLLM's cache on a GPU with `gpu` bytes; below 0 without room for
        its weights."""
        room = int(gpu * utilization) - self.vllm_weights - RESERVE
        return room // (tokens * self.kv_token + self.kv_sequence)


def update_tokens(recipe: Settings, shape: Shape, prompt: int, samples: int) -> int:
    """Tokens of a micro-batch of the update, with answers of the full length.

    Samples of one prompt share its tokens where `plugin/prefixes.py` has them share a row. They are counted
    apart where a micro-batch may not hold them together; `actor.shuffle`, which no recipe has on, is not
    looked at. With a dynamic batch size a micro-batch is filled up to a number of tokens.
    """
    answer, n = recipe.integer("response_length"), max(1, recipe.integer("n"))
    if recipe["dynamic_batch"]:
        update = max(1, recipe.integer("mini_batch") * n // recipe.world) * (prompt + answer)
        return min(update, max(recipe.integer("micro_tokens"), prompt + answer))
    apart = samples * (prompt + answer)
    masked = recipe["attention"] in ("sdpa", "eager") and not recipe["remove_padding"]
    split = recipe["fused_kernels"] or recipe.integer("batch") % recipe.world
    if recipe.trainer != trainers.VERL or not masked or split or shape.delta_net or shape.experts:
        return apart
    # A micro-batch of another number holds parts of groups, which may be samples of as many prompts.
    group = n if samples % n == 0 else samples if n % samples == 0 else 1
    most = group
    while most > 1:
        rows, longest = -(-group // most), prompt + most * answer
        pairs, shared = rows * longest**2, samples // group * rows * longest
        if pairs <= MOST_PAIRS * group * (prompt + answer) ** 2 and shared < apart:
            return shared
        most = (most + 1) // 2
    return apart


def estimate(recipe: Settings, shape: Shape, *, prompt_tokens: int = 0, micro_batch: int = 0) -> Estimate:
    """Estimate a run with this recipe. `prompt_tokens` is the length of its longest prompt; 0 stands for the
    length that the recipe allows. `micro_batch` is another number of samples than the recipe's.

    Offloading moves states to the host for the rollout. Both trainers fetch them back for the update, so its
    peak stays the same (read in veRL 0.9.1, `workers/engine/fsdp`, and EasyR1, `workers/fsdp_workers.py`).
    With `offload_policy` FSDP2 keeps them on the host in the update, too, and Adam steps there.

    With LoRA the frozen weights have neither gradients nor moments, and the actor without its adapters is the
    reference. veRL casts the adapters to the type of the weights.
    """
    size, shards, adapters = shape.parameters, recipe.shards, adapter_parameters(recipe, shape)
    weight, trained = weight_bytes(recipe), adapters or size
    weights, moments = weight * (size + adapters) // shards, 2 * weight * trained // shards
    samples = max(1, micro_batch or recipe.integer("micro_batch"))
    tokens = update_tokens(recipe, shape, prompt_tokens or recipe.integer("prompt_length"), samples)
    with_logits = min(tokens, FUSED_TOKENS) if recipe["fused_kernels"] else tokens
    tensor_parallel = max(1, recipe.integer("tensor_parallel"))
    streamed = bool(recipe["offload_policy"])
    resident = (0 if recipe["params_offload"] else weights) + (0 if recipe["optimizer_offload"] else moments)
    # veRL loads a model with adapters as a whole to hand its weights to vLLM, any other tensor by tensor.
    loaded = weights if adapters and recipe["params_offload"] else 0
    host = _host(recipe, shape)
    return Estimate(
        parameters=size,
        trained=trained,
        states=0 if streamed else weights + moments + weight * trained // shards,
        resident=0 if streamed else resident,
        syncing=0 if streamed else resident + loaded,
        gathered=gathered_bytes(shape),
        activations=activation_bytes(shape, tokens, checkpointing=bool(recipe["gradient_checkpointing"])),
        logits=with_logits * shape.vocabulary * (LOGIT if recipe["remove_padding"] else LOGIT_UNPACKED),
        # PyTorch's AdamW builds the square roots of the second moments, unless it is fused.
        adam_step=0 if streamed or _fused(recipe) else weight * trained // shards,
        vllm_weights=(size + adapters) * HALF // tensor_parallel,
        kv_token=max(1, kv_bytes(shape, tensor_parallel)),
        kv_sequence=state_bytes(shape) // tensor_parallel,
        host=sum(host),
        host_states=host[0],
        host_images=host[1],
        checkpoint=_checkpoint(recipe, size, adapters),
    )


def _checkpoint(recipe: Settings, size: int, adapters: int) -> int:
    """On disk. veRL leaves the frozen weights out where it is told so; the optimizer never has them."""
    told = recipe["save_contents"]
    contents = told if isinstance(told, (list, tuple)) else ("model", "optimizer", "extra")
    if recipe["save_model_only"]:
        contents = ("model",)
    model = (0 if adapters and recipe["save_lora_only"] else size) + adapters
    moments = 2 * (adapters or size)
    saved = model * ("model" in contents) + moments * ("optimizer" in contents)
    # Each GPU writes its shards, also where several have the same ones; veRL joins `hf_model` in bf16.
    copies = recipe.world // recipe.shards
    return weight_bytes(recipe) * saved * copies + HALF * size * ("hf_model" in contents)


def weight_bytes(recipe: Settings) -> int:
    """Of a weight in the actor. Gradients and moments are of its type."""
    half = recipe["model_dtype"] in ("bf16", "bfloat16", "fp16", "float16")
    return HALF if half else WEIGHT


def _fused(recipe: Settings) -> bool:
    """Whether AdamW's step is one kernel: always in EasyR1, on request in veRL."""
    told = recipe["optimizer_options"]
    return recipe.trainer == trainers.EASYR1 or bool(isinstance(told, Mapping) and told.get("fused"))


def _host(recipe: Settings, shape: Shape) -> tuple[int, int, int]:
    """Of one node: offloaded states; the pixels of a step; reference model and vLLM's sleeping weights.

    With veRL the samples of a prompt share its pixels (docs/patches.md, `one_copy_in_transfer`); EasyR1 keeps
    them once a sample.
    """
    size, nodes, adapters = (
        shape.parameters,
        max(1, recipe.integer("nodes")),
        adapter_parameters(recipe, shape),
    )
    copies = recipe.world // recipe.shards
    weight, trained = weight_bytes(recipe) * copies, adapters or size
    weights, moments = weight * (size + adapters), 2 * weight * trained
    if recipe["offload_policy"]:
        offloaded = weights + moments + weight * trained
    else:
        offloaded = (weights if recipe["params_offload"] else 0) + (
            moments if recipe["optimizer_offload"] else 0
        )
    # EasyR1 loads the reference in bf16, veRL as the actor; with adapters the actor is its own reference.
    reference = size * (WEIGHT if recipe.trainer == trainers.VERL else HALF)
    if adapters or not recipe["kl_loss"]:
        reference = 0
    replicas = recipe.world // max(1, recipe.integer("tensor_parallel"))
    pixels = cast(int, recipe["max_pixels"] or 0)
    patches = pixels // shape.patch**2 * max(1, recipe.integer("limit_images"))
    copies = 1 if recipe.trainer == trainers.VERL else max(1, recipe.integer("n"))
    images = recipe.integer("batch") * copies * patches * patch_bytes(shape)
    return offloaded // nodes, images // nodes, (reference + replicas * size * HALF) // nodes
