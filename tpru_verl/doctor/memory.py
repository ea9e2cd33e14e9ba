"""How much memory a run takes, from a model's shape and a recipe's settings: arithmetic, nothing is loaded.

Counted are states of the actor under full sharding, activations with gradient checkpointing, logits, what
vLLM is given and what of it is left for its cache; on the host what is offloaded and the images' pixels. Not
counted are fragmentation, NCCL's buffers, CUDA contexts (together about 3 GiB a GPU, `RESERVE`) and Ray's
object store.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tpru_verl import trainers

if TYPE_CHECKING:
    from tpru_verl.launch.settings import Settings

GIB = 1024**3
# CUDA context, NCCL, cuBLAS workspaces and what vLLM keeps asleep: an allowance, not a measurement.
RESERVE = 3 * GIB
# Bytes a parameter. FSDP keeps fp32 weights, as both trainers load them; with fp32 gradients and Adam's two
# moments the 16 of Rajbhandari et al. 2020 (ZeRO), section 3.1.
WEIGHT, GRADIENT, ADAM, HALF = 4, 4, 8, 2
# Bytes a token of a logit: bf16, its gradient, and one fp32 copy for the log-probabilities.
LOGIT = 2 + 2 + 4
# Side of a patch squared x 3 colours x 2 frames, fp32: a row of Qwen-VL's `pixel_values`, for patches of 14.
PIXEL_VALUES = 3 * 2 * 14 * 14 * 4
PATCHES_A_TOKEN = 4  # merge_size 2 x 2


@dataclass(frozen=True)
class Shape:
    """What a model's config.json says; the language model's sizes, and the vision tower's after `vision_`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    vision_layers: int
    vision_hidden: int
    vision_intermediate: int
    patch: int

    @property
    def parameters(self) -> int:
        """Of the language model with its embeddings, the vision tower and its merger; biases left out."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate
        words = self.vocabulary * self.hidden * (1 if self.tied else 2)
        wide = self.vision_hidden
        merged = PATCHES_A_TOKEN * wide
        tower = self.vision_layers * (4 * wide**2 + 3 * wide * self.vision_intermediate)
        patches = 3 * 2 * self.patch**2 * wide
        return self.layers * layer + words + patches + tower + merged * (merged + self.hidden)

    @property
    def kv_bytes(self) -> int:
        """Of vLLM's cache for one token, in bf16: keys and values of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * HALF

    def activations(self, tokens: int) -> int:
        """Bytes for `tokens` of a micro-batch with checkpointing: each layer's input, one layer in full.

        The latter after Korthikanti et al. 2022 (Reducing Activation Recomputation), section 4.1, but for
        the scores, which FlashAttention does not keep: 11 h for attention, 4 h for norms, and of a gated
        MLP 2 h + 8 i, in bf16 as there.
        """
        full = 17 * self.hidden + 8 * self.intermediate
        return tokens * (self.layers * HALF * self.hidden + full)


# From the models' own config.json on the Hub; what is on disk is read instead.
KNOWN = {
    "Qwen/Qwen2.5-VL-3B-Instruct": Shape(36, 2048, 11008, 16, 2, 128, 151936, True, 32, 1280, 3420, 14),
    "Qwen/Qwen2.5-VL-7B-Instruct": Shape(28, 3584, 18944, 28, 4, 128, 152064, False, 32, 1280, 3420, 14),
    "Qwen/Qwen2.5-VL-32B-Instruct": Shape(64, 5120, 27648, 40, 8, 128, 152064, False, 32, 1280, 3456, 14),
    "Qwen/Qwen3-VL-4B-Instruct": Shape(36, 2560, 9728, 32, 8, 128, 151936, True, 24, 1024, 4096, 16),
}


def shape_of(model: str) -> Shape | None:
    """From `model`/config.json, or of a model known by its Hub id; None for any other.

    Raises ValueError for a config.json that does not say what is needed.
    """
    file = Path(model).expanduser() / "config.json"
    if not file.is_file():
        return KNOWN.get(model)
    config = json.loads(file.read_text(encoding="utf-8"))
    text, vision = config.get("text_config") or config, config.get("vision_config") or {}
    try:
        hidden, heads = text["hidden_size"], text["num_attention_heads"]
        return Shape(
            layers=text["num_hidden_layers"],
            hidden=hidden,
            intermediate=text["intermediate_size"],
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or hidden // heads,
            vocabulary=text["vocab_size"],
            tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            vision_layers=vision.get("depth", 0),
            vision_hidden=vision.get("hidden_size", 0),
            vision_intermediate=vision.get("intermediate_size", 0),
            patch=vision.get("patch_size", 14),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: found no {error.args[0]}, expected the config of a vision-language model"
        ) from error


@dataclass(frozen=True)
class Estimate:
    """Bytes. `update` and `rollout` are peaks of one GPU in the two phases; vLLM sleeps in the first."""

    parameters: int
    states: int  # of the actor on one GPU in the update: weights, gradients, Adam
    resident: int  # of these what stays on the GPU beside vLLM
    activations: int
    logits: int
    vllm_weights: int  # on one GPU
    kv_token: int  # of vLLM's cache, on one GPU
    host: int  # of one node
    checkpoint: int  # on disk

    @property
    def update(self) -> int:
        return self.states + self.activations + self.logits + RESERVE

    def rollout(self, gpu: int, utilization: float) -> int:
        """Of a GPU with `gpu` bytes, of which vLLM takes `utilization`."""
        return self.resident + int(gpu * utilization)

    def cache_tokens(self, gpu: int, utilization: float) -> int:
        """Tokens in vLLM's cache on a GPU with `gpu` bytes; below 0 where not even its weights fit."""
        return (int(gpu * utilization) - self.vllm_weights - RESERVE) // self.kv_token


def estimate(recipe: Settings, shape: Shape, *, prompt_tokens: int = 0) -> Estimate:
    """Of a run with this recipe. `prompt_tokens`: of the longest prompt; without, the most that is let in.

    Offloading moves states to the host for the rollout; both trainers fetch them back for the update, so its
    peak is the same (read in veRL 0.9.1, `workers/engine/fsdp`, and EasyR1, `workers/fsdp_workers.py`).
    """
    size, world = shape.parameters, recipe.world
    sequence = (prompt_tokens or recipe.integer("prompt_length")) + recipe.integer("response_length")
    tokens = sequence * max(1, recipe.integer("micro_batch"))
    tensor_parallel = max(1, recipe.integer("tensor_parallel"))
    on_gpu = (0 if recipe["params_offload"] else WEIGHT) + (0 if recipe["optimizer_offload"] else ADAM)
    activations = shape.activations(tokens)
    if not recipe["gradient_checkpointing"]:  # every layer in full
        activations = tokens * shape.layers * (17 * shape.hidden + 8 * shape.intermediate)
    return Estimate(
        parameters=size,
        states=size * (WEIGHT + GRADIENT + ADAM) // world,
        resident=size * on_gpu // world,
        activations=activations,
        logits=tokens * shape.vocabulary * LOGIT,
        vllm_weights=size * HALF // tensor_parallel,
        kv_token=max(1, shape.kv_bytes // tensor_parallel),
        host=_host(recipe, shape),
        checkpoint=size * (WEIGHT + ADAM),
    )


def _host(recipe: Settings, shape: Shape) -> int:
    """What is offloaded, the reference, vLLM's weights asleep, and the pixels of a step: with veRL a prompt's
    samples share them (`plugin.patches.one_copy_in_transfer`), EasyR1 has them once a trajectory.
    """
    size, nodes = shape.parameters, max(1, recipe.integer("nodes"))
    offloaded = (WEIGHT if recipe["params_offload"] else 0) + (ADAM if recipe["optimizer_offload"] else 0)
    # EasyR1 loads the reference in bf16, veRL as the actor.
    reference = (WEIGHT if recipe.trainer == trainers.VERL else HALF) if recipe["kl_loss"] else 0
    replicas = recipe.world // max(1, recipe.integer("tensor_parallel"))
    pixels = cast(int, recipe["max_pixels"] or 0)
    patches = pixels // shape.patch**2 * max(1, recipe.integer("limit_images"))
    copies = 1 if recipe.trainer == trainers.VERL else max(1, recipe.integer("n"))
    rows = recipe.integer("batch") * copies
    values = PIXEL_VALUES * shape.patch**2 // 14**2
    return (size * (offloaded + reference) + replicas * size * HALF + rows * patches * values) // nodes
