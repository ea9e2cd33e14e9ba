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
# PyTorch's AdamW builds the square roots of the second moments in fp32, unless it is fused.
ADAM_STEP = 4
# Bytes of a logit: bf16, its gradient, one fp32 copy for the log-probabilities. Without packing veRL copies
# the logits of each sequence together, which is a bf16 copy and its gradient more.
LOGIT, LOGIT_UNPACKED = 2 + 2 + 4, 2 + 2 + 4 + 2 + 2


def patch_bytes(shape: Shape) -> int:
    """Of a row of Qwen-VL's `pixel_values`: 3 colours x 2 frames of a patch, in fp32."""
    return 3 * 2 * shape.patch**2 * 4


def kv_bytes(shape: Shape) -> int:
    """Of vLLM's cache for one token, in bf16: keys and values of every layer."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * HALF


def activation_bytes(shape: Shape, tokens: int, *, checkpointing: bool = True) -> int:
    """Bytes for `tokens` of a micro-batch: with checkpointing each layer's input and one layer in full.

    A layer in full after Korthikanti et al. 2022 (Reducing Activation Recomputation), section 4.1, without
    the scores, which FlashAttention does not keep: 11 h for attention, 4 h for norms, and for a gated MLP
    2 h + 8 i, in bf16 as there.
    """
    layer = 17 * shape.hidden + 8 * shape.intermediate * max(1, shape.experts_a_token)
    kept = shape.layers * HALF * shape.hidden + layer if checkpointing else shape.layers * layer
    return tokens * kept


@dataclass(frozen=True)
class Estimate:
    """Bytes. `update` and `rollout` are the peaks of one GPU in the two phases; vLLM sleeps in the first."""

    parameters: int
    states: int  # of the actor on one GPU in the update: weights, gradients, moments of Adam
    resident: int  # the part of the states that stays on the GPU beside vLLM
    activations: int
    logits: int
    adam_step: int  # temporaries of the optimizer's step, when activations and logits are gone
    vllm_weights: int  # on one GPU
    kv_token: int  # of vLLM's cache, on one GPU
    host: int  # of one node
    checkpoint: int  # on disk

    @property
    def update(self) -> int:
        return self.states + max(self.activations + self.logits, self.adam_step) + RESERVE

    def rollout(self, gpu: int, utilization: float) -> int:
        """Of a GPU with `gpu` bytes, when vLLM takes the share `utilization` of them."""
        return self.resident + int(gpu * utilization)

    def cache_tokens(self, gpu: int, utilization: float) -> int:
        """Tokens in vLLM's cache on a GPU with `gpu` bytes; below 0 where not even its weights fit."""
        return (int(gpu * utilization) - self.vllm_weights - RESERVE) // self.kv_token


def estimate(recipe: Settings, shape: Shape, *, prompt_tokens: int = 0) -> Estimate:
    """Estimate a run with this recipe. `prompt_tokens` is the length of its longest prompt; 0 stands for the
    length that the recipe allows.

    Offloading moves states to the host for the rollout. Both trainers fetch them back for the update, so its
    peak stays the same (read in veRL 0.9.1, `workers/engine/fsdp`, and EasyR1, `workers/fsdp_workers.py`).
    """
    size, world = shape.parameters, recipe.world
    sequence = (prompt_tokens or recipe.integer("prompt_length")) + recipe.integer("response_length")
    tokens = sequence * max(1, recipe.integer("micro_batch"))
    tensor_parallel = max(1, recipe.integer("tensor_parallel"))
    on_gpu = (0 if recipe["params_offload"] else WEIGHT) + (0 if recipe["optimizer_offload"] else ADAM)
    return Estimate(
        parameters=size,
        states=size * (WEIGHT + GRADIENT + ADAM) // world,
        resident=size * on_gpu // world,
        activations=activation_bytes(shape, tokens, checkpointing=bool(recipe["gradient_checkpointing"])),
        logits=tokens * shape.vocabulary * (LOGIT if recipe["remove_padding"] else LOGIT_UNPACKED),
        adam_step=0 if _fused(recipe) else size * ADAM_STEP // world,
        vllm_weights=size * HALF // tensor_parallel,
        kv_token=max(1, kv_bytes(shape) // tensor_parallel),
        host=_host(recipe, shape),
        checkpoint=size * (WEIGHT + ADAM),
    )


def _fused(recipe: Settings) -> bool:
    """Whether AdamW's step is one kernel: always in EasyR1, on request in veRL."""
    told = recipe["optimizer_options"]
    return recipe.trainer == trainers.EASYR1 or bool(isinstance(told, Mapping) and told.get("fused"))


def _host(recipe: Settings, shape: Shape) -> int:
    """Offloaded states, the reference model, vLLM's sleeping weights, and the pixels of a step.

    With veRL the samples of a prompt share its pixels (docs/patches.md, `one_copy_in_transfer`); EasyR1 keeps
    them once a sample.
    """
    size, nodes = shape.parameters, max(1, recipe.integer("nodes"))
    offloaded = (WEIGHT if recipe["params_offload"] else 0) + (ADAM if recipe["optimizer_offload"] else 0)
    # EasyR1 loads the reference in bf16, veRL as the actor.
    reference = (WEIGHT if recipe.trainer == trainers.VERL else HALF) if recipe["kl_loss"] else 0
    replicas = recipe.world // max(1, recipe.integer("tensor_parallel"))
    pixels = cast(int, recipe["max_pixels"] or 0)
    patches = pixels // shape.patch**2 * max(1, recipe.integer("limit_images"))
    copies = 1 if recipe.trainer == trainers.VERL else max(1, recipe.integer("n"))
    images = recipe.integer("batch") * copies * patches * patch_bytes(shape)
    return (size * (offloaded + reference) + replicas * size * HALF + images) // nodes
