"""Estimated seconds and memory of a training step, by model and number of GPUs (see docs/scale.md).

    python benchmarks/scale.py                                    # 3B, 7B, 32B on 8, 64 and 512 GPUs
    python benchmarks/scale.py --recipe tpru_7b --gpus 16 data.train_batch_size=512
    python benchmarks/scale.py --check                            # beside the operations that PyTorch counts
    python benchmarks/scale.py --check --timed                    # and beside seconds on this machine's CPU

Nothing runs on a GPU. The speeds are the hardware maker's; the shares of them that a run reaches
are assumed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import cast

import measure
from omegaconf import DictConfig, OmegaConf

from tpru_verl import trainers
from tpru_verl.doctor import memory
from tpru_verl.doctor.memory import GIB, HALF
from tpru_verl.launch.plan import compose
from tpru_verl.launch.settings import Settings
from tpru_verl.shapes import SHAPES, Shape, shape_of

# NVIDIA's data sheet of the H100 SXM: dense bf16 operations and bytes of memory a second; bytes a second in
# one direction of NVLink 4 and of a 400 Gb/s adapter. A node has one adapter a GPU.
PEAK, HBM, NVLINK, ADAPTER = 989e12, 3.35e12, 450e9, 50e9
GPU_BYTES = 80 * 10**9
# Assumed, not measured: the shares of these speeds that training, prefill, decoding and collectives reach;
# seconds of one hop of a ring; the shortest decoding step; seconds at the start and end of phases.
TRAINING, PREFILL, DECODING, COLLECTIVE = 0.4, 0.5, 0.6, 0.8
HOP, LEAST_DECODING, AROUND = 3e-6, 0.004, 3.0
# Measured on one thread of this project's machine (benchmarks/image_preparation.py): five 640 x 480 JPEGs.
PREPARATION = 0.066


@dataclass(frozen=True)
class Rows:
    """Tokens and images of a prompt and its responses; the default is a TPRU row of five images."""

    text: int = 300
    images: int = 5
    response: int = 400  # mean; the longest is the recipe's limit

    def patches(self, recipe: Settings, shape: Shape) -> int:
        """Patches of one image, at the recipe's largest size."""
        tokens = cast("int", recipe["max_pixels"]) // (shape.merge * shape.patch) ** 2
        return tokens * shape.merge**2

    def prompt(self, recipe: Settings, shape: Shape) -> int:
        return self.text + self.images * self.patches(recipe, shape) // shape.merge**2


def forward(shape: Shape, tokens: int, *, logits: bool = True) -> float:
    """Operations of the language model's forward pass over one sequence of s tokens.

    Two for each weight and token. The two products of attention add 4 h s for each layer and token, where h
    is the number of heads times their size; the causal half is not left out.
    """
    weights = sum(rows * columns * number for rows, columns, number in shape.matrices)
    weights += shape.layers * (shape.experts_a_token * shape.expert + shape.experts * shape.hidden)
    scores = 4 * shape.kv_layers * shape.heads * shape.head_dim * tokens
    return tokens * (2.0 * weights + scores) + 2.0 * logits * tokens * shape.vocabulary * shape.hidden


def see(shape: Shape, patches: int) -> float:
    """Operations of the vision tower's forward pass over one image; each patch attends to all."""
    wide, merged = shape.vision_hidden, shape.merge**2 * shape.vision_hidden
    layer = 4 * wide**2 + (3 if shape.vision_gated else 2) * wide * shape.vision_intermediate
    scores = 4 * shape.vision_layers * wide * patches
    embed = 3 * 2 * shape.patch**2 * wide
    merger = (1 + shape.deepstack) * merged * (merged + shape.hidden) / shape.merge**2
    return patches * (2.0 * (shape.vision_layers * layer + embed + merger) + scores)


@dataclass(frozen=True)
class Step:
    """Seconds of each phase, and bytes of memory."""

    images: float
    prefill: float
    decoding: float
    weights: float  # on their way from the trainer to vLLM
    reference: float
    update: float
    gathering: float  # share of the two above that waits for collectives
    per_gpu: int
    at_once: int  # sequences in a replica's cache; below 1 where none fits
    host: int  # bytes of the node's own memory

    @property
    def total(self) -> float:
        # Images are prepared while vLLM works on those that are ready.
        rollout = max(self.images, self.prefill + self.decoding)
        return rollout + self.weights + self.reference + self.update + AROUND

    @property
    def bottleneck(self) -> str:
        if self.per_gpu > GPU_BYTES or self.at_once < 1:
            return "does not fit"
        compute = self.reference + self.update - self.gathering
        parts = {
            "image preparation": self.images,
            "decoding": self.decoding,
            "prefill": self.prefill,
            "weights to vLLM": self.weights,
            "collectives": self.gathering,
            "arithmetic of training": compute,
            "start and end of phases": AROUND,
        }
        if self.images <= self.prefill + self.decoding:
            parts.pop("image preparation")
        return max(parts, key=lambda name: parts[name])


def bandwidth(world: int, per_node: int) -> float:
    """Bytes a second that a collective moves to each GPU; rings enter a node by all its adapters."""
    return COLLECTIVE * (NVLINK if world <= per_node else min(NVLINK, per_node * ADAPTER))


def exchanged(shape: Shape, world: int) -> tuple[float, float]:
    """Bytes that a rank gets from the others: of weights in one pass, of gradients in one update."""
    share = (world - 1) / world
    return HALF * shape.parameters * share, memory.GRADIENT * shape.parameters * share


def agent_loop_workers(recipe: Settings) -> int:
    """Agent-loop workers of the whole run; veRL's default is 8 for any number of nodes."""
    rollout = cast("dict[str, dict]", recipe.config["actor_rollout_ref"])["rollout"]
    return max(1, rollout["agent"]["num_workers"])


def step_of(recipe: Settings, shape: Shape, rows: Rows) -> Step:
    world, per_node = recipe.world, recipe.integer("gpus")
    tensor_parallel, n = recipe.integer("tensor_parallel"), recipe.integer("n")
    prompts, prompt = recipe.integer("batch"), rows.prompt(recipe, shape)
    trajectories, length = prompts * n, prompt + rows.response
    found = memory.estimate(recipe, shape, prompt_tokens=prompt)
    use = cast("float", recipe["gpu_memory"])
    capacity = found.sequences(GPU_BYTES, use, length)

    replicas = max(1, world // tensor_parallel)
    sequences = trajectories / replicas
    vision = rows.images * see(shape, rows.patches(recipe, shape))
    prefill = prompts / replicas * (forward(shape, prompt, logits=False) + vision)
    at_once = min(sequences, max(1, capacity), 1024)
    steps = sequences / at_once * rows.response
    tail = max(0, recipe.integer("response_length") - rows.response)  # the longest response, nearly alone
    bytes_read = HALF * shape.parameters + at_once * (
        length * memory.kv_bytes(shape) + memory.state_bytes(shape)
    )
    reading = bytes_read / (tensor_parallel * HBM * DECODING)
    computing = at_once * forward(shape, 1) / (tensor_parallel * PEAK * PREFILL)
    alone = HALF * shape.parameters / (tensor_parallel * HBM * DECODING)
    decoding = steps * max(reading, computing, LEAST_DECODING) + tail * max(alone, LEAST_DECODING)

    speed, share = bandwidth(world, per_node), (world - 1) / world
    weights, gradients = exchanged(shape, world)
    ring = (world - 1) * HOP * (shape.layers + shape.vision_layers)
    micro = max(1, recipe.integer("micro_batch"))
    passes = -(-trajectories // (world * micro))  # micro-batches of a GPU
    look = (micro * forward(shape, length) + vision * max(1, micro / n)) / (PEAK * TRAINING)
    train = 4 * look  # forward, again, backward twice
    gather = weights / speed + ring
    exchange = 2 * gather + gradients / speed + ring
    # Old log-probabilities are the update's own with one mini-batch a step, a pass of their own otherwise.
    looks = int(bool(recipe["kl_loss"])) + int(recipe.integer("mini_batch") < prompts)
    return Step(
        images=prompts * PREPARATION / agent_loop_workers(recipe),
        prefill=prefill / (tensor_parallel * PEAK * PREFILL),
        decoding=decoding,
        weights=memory.WEIGHT * shape.parameters * share / speed + ring,
        reference=passes * looks * max(look, gather),
        update=passes * max(train, exchange),
        gathering=passes * (looks * max(0.0, gather - look) + max(0.0, exchange - train)),
        per_gpu=max(found.update, found.rollout(GPU_BYTES, use)),
        at_once=capacity,
        host=found.host,
    )


def settings_of(settings: Settings, gpus: int, grown: bool) -> Settings:
    """The recipe on that many GPUs; `grown`: with as many rows a GPU and step as on its own number."""
    changed = cast("DictConfig", OmegaConf.create(dict(settings.config)))
    own = changed.trainer.nnodes * changed.trainer.n_gpus_per_node
    changed.trainer.n_gpus_per_node = min(gpus, changed.trainer.n_gpus_per_node)
    changed.trainer.nnodes = gpus // changed.trainer.n_gpus_per_node
    if grown:
        changed.data.train_batch_size = round(changed.data.train_batch_size * gpus / own)
        actor = changed.actor_rollout_ref.actor
        actor.ppo_mini_batch_size = round(actor.ppo_mini_batch_size * gpus / own)
    return Settings(trainers.VERL, cast("dict[str, object]", OmegaConf.to_container(changed)))


def show(names: list[str], counts: list[int], grown: bool, overrides: list[str]) -> measure.Rows:
    columns = ("recipe", "GPUs", "images", "prefill", "decoding", "weights", "ref.", "update", "step, s")
    table = [[*columns, "traj./s", "GiB a GPU", "GiB a host", "bottleneck"]]
    for name in names:
        settings = compose(name, ["data.train_files=x", "data.val_files=x", *overrides]).settings
        for gpus in counts:
            recipe = settings_of(settings, gpus, grown)
            shape = shape_of(recipe.text("model"))
            if shape is None:
                raise SystemExit(f"{recipe.said('model')}: found neither a folder nor a model known by name")
            step = step_of(recipe, shape, Rows())
            times = (step.images, step.prefill, step.decoding, step.weights, step.reference, step.update)
            rate = recipe.integer("batch") * recipe.integer("n") / step.total
            sizes = (f"{step.per_gpu / GIB:.0f}", f"{step.host / GIB:.0f}")
            cells = (*(f"{t:.1f}" for t in times), f"{step.total:.0f}", f"{rate:.0f}", *sizes)
            table.append([name, str(gpus), *cells, step.bottleneck])
    return table


def model_of(shape: Shape, device: str):
    """Qwen2.5-VL of that shape with random weights."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "vocab_size": shape.vocabulary,
            "tie_word_embeddings": shape.tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [shape.head_dim // 8, *[shape.head_dim * 3 // 16] * 2],
            },
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_intermediate,
            "out_hidden_size": shape.hidden,
            "num_heads": max(1, shape.vision_hidden // 80),
            "patch_size": shape.patch,
        },
        tie_word_embeddings=shape.tied,
    )
    with torch.device(device):
        return Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)


def counted(shape: Shape, tokens: int, grid: tuple[int, int]) -> tuple[int, int, int]:
    """Parameters of transformers' model, and operations that PyTorch counts in its two forward passes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = model_of(shape, "meta")
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as text, torch.no_grad():
        positions = torch.zeros(3, 1, tokens, dtype=torch.long, device="meta")
        hidden = model.model.language_model(input_ids=ids, position_ids=positions, use_cache=False)
        model.lm_head(hidden.last_hidden_state)
    # The tower reads its grid on the host: its blocks are counted one by one, each over the whole image.
    tower, patches = model.model.visual, grid[0] * grid[1]
    with FlopCounterMode(display=False) as picture, torch.no_grad():
        pixels = torch.zeros(patches, 3 * 2 * shape.patch**2, dtype=torch.bfloat16, device="meta")
        states = tower.patch_embed(pixels)
        angles = torch.zeros(patches, 80, device="meta")
        lengths = torch.tensor([0, patches], dtype=torch.int32)
        for block in tower.blocks:
            states = block(states, cu_seqlens=lengths, position_embeddings=(angles.cos(), angles.sin()))
        tower.merger(states)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters, text.get_total_flops(), picture.get_total_flops()


def check() -> measure.Rows:
    table = [["", "parameters", "forward, 1,000 tokens", "forward, image of 14 x 12 patches"]]
    for name, shape in SHAPES.items():
        if "2.5" not in name:
            continue
        size, text, picture = counted(shape, 1000, (14, 12))
        pairs = ((shape.parameters, size), (forward(shape, 1000), text), (see(shape, 168), picture))
        table.append([name, *(f"{ours:.4g} / {theirs:.4g} = {ours / theirs:.3f}" for ours, theirs in pairs)])
    return table


SMALL = Shape(4, 256, 1024, 4, 2, 64, 4096, True, 2, 160, 320, 14)


SEQUENCES, TOKENS = 4, 256


def timed() -> measure.Rows:
    """Forward and backward of four sizes on this CPU: how far seconds follow operations."""
    import torch

    table = [["layers x hidden", "10^9 operations", "seconds", "10^9 a second", "of the largest's speed"]]
    found: list[tuple[str, float, float]] = []
    for layers, hidden in ((2, 256), (4, 256), (4, 512), (8, 768)):
        shape = SMALL._replace(layers=layers, hidden=hidden, intermediate=4 * hidden, heads=hidden // 64)
        model = model_of(shape, "cpu").float()
        ids = torch.randint(0, shape.vocabulary, (SEQUENCES, TOKENS))
        seconds: list[float] = []
        for _ in range(6):
            begin = time.perf_counter()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            model.zero_grad()
            seconds.append(time.perf_counter() - begin)
        operations = 3 * SEQUENCES * forward(shape, TOKENS)
        found.append((f"{layers} x {hidden}", operations, median(seconds[1:])))
    best = found[-1][1] / found[-1][2]
    for name, operations, spent in found:
        speed = operations / spent
        table.append(
            [name, f"{operations / 1e9:.1f}", f"{spent:.3f}", f"{speed / 1e9:.1f}", f"{speed / best:.2f}"]
        )
    return table


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--recipe", nargs="+", default=["tpru_3b", "tpru_7b", "tpru_32b"])
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--timed", action="store_true", help="with --check")
    args, overrides = parser.parse_known_args()
    if args.check:
        title = "Estimated / counted in transformers' model on PyTorch's meta device"
        print(measure.markdown(check(), title))
        if args.timed:
            title = f"Forward and backward, {SEQUENCES} sequences of {TOKENS} tokens, float32, medians of 5"
            print(measure.markdown(timed(), f"\n{title}"))
        return
    for grown in (False, True):
        title = "Rows a step grow with the GPUs" if grown else "As many rows a step as the recipe has"
        print(measure.markdown(show(args.recipe, args.gpus, grown, overrides), title), end="\n\n")


if __name__ == "__main__":
    main()
