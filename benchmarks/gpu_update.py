"""Updates of a model of Qwen2.5-VL-3B's shape on rows like TPRU's, beside the estimates of docs/scale.md.

    python benchmarks/gpu_update.py                                   # one GPU of 80 GB, 60 GB of host memory
    python benchmarks/gpu_update.py --gpus 8 --shape Qwen/Qwen2.5-VL-7B-Instruct
    python benchmarks/gpu_update.py --stock                           # veRL without what makes it faster
    python benchmarks/gpu_update.py --lora                            # adapters, nothing offloaded
    python benchmarks/gpu_update.py --device cpu --shape small --steps 2                  # without a GPU

Weights are random and nothing is downloaded, so answers are noise; they do not end before the full length.
Only times and memory mean anything. Without the package flash-attn the run takes PyTorch's attention. Rows
have five pictures of 640 x 480. The script prints tokens a second of the update, model FLOPs utilization and
the peak of a GPU's memory. Utilization is a share of an H100's dense bf16 speed; its operations are those of
`benchmarks/scale.py` for pictures of the largest size. On one GPU the weights and Adam's moments lie in host
memory between updates: the measured update contains their way there and back, the estimated one does not.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import measure
import numpy as np
import torch
from made_rows import IMAGES, picture, sample, write
from scale import PEAK, SMALL, TRAINING, Rows, forward, model_of, see, settings_of, step_of
from step import STOCK_LOOP, as_stock
from training import MEASURED, device_option, planned, train
from transformers import AutoProcessor, GenerationConfig

from tpru_verl.demo import tiny_model
from tpru_verl.demo.run import CHECKPOINT
from tpru_verl.doctor import memory
from tpru_verl.doctor.memory import GIB, RESERVE
from tpru_verl.launch.settings import Settings
from tpru_verl.shapes import SHAPES, Shape

PROMPTS, SAMPLES, RESPONSE = 32, 5, 400


def write_model(shape: Shape, folder: Path, device: str = "cpu") -> None:
    """Random weights in bf16, with the demo's tokenizer: of its special tokens alone the ids matter.

    They are made on `device`: those of a 3B model take minutes of one core.
    """
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    processor.image_processor.size = {"shortest_edge": 16384, "longest_edge": 36864}
    torch.manual_seed(0)
    model = model_of(shape, device)
    ids = processor.tokenizer.get_vocab()
    for name, token in {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }.items():
        setattr(model.config, name, ids[token])
    model.generation_config = GenerationConfig(eos_token_id=ids["<|im_end|>"], do_sample=True)
    tiny_model.save(model, processor, folder)


def overrides_of(folder: Path, steps: int, gpus: int) -> list[str]:
    return [
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/train.parquet",
        "data.min_pixels=16384",
        "data.max_pixels=36864",
        "data.max_prompt_length=1648",
        f"data.max_response_length={RESPONSE}",
        f"data.train_batch_size={PROMPTS * gpus}",
        "data.filter_overlong_prompts=false",
        f"actor_rollout_ref.model.path={folder}/model",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS * gpus}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=5",
        "actor_rollout_ref.actor.use_kl_loss=false",
        # One kernel: the default's temporaries, 4 bytes a parameter, would be the peak on one GPU.
        "actor_rollout_ref.actor.optim.override_optimizer_config={fused:true}",
        # On one GPU Adam's moments leave no room for vLLM.
        f"actor_rollout_ref.actor.fsdp_config.param_offload={gpus == 1}",
        f"actor_rollout_ref.actor.fsdp_config.optimizer_offload={gpus == 1}",
        f"actor_rollout_ref.rollout.n={SAMPLES}",
        "actor_rollout_ref.rollout.max_model_len=2048",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=5",
        # Random weights would end a response after some 260 of 400 tokens.
        "actor_rollout_ref.rollout.ignore_eos=true",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        f"trainer.n_gpus_per_node={gpus}",
        f"trainer.total_training_steps={steps}",
        f"trainer.default_local_dir={folder}/checkpoints",
        *MEASURED,
    ]


# Adapters leave room for vLLM beside the trainer, and for two prompts in a micro-batch.
LORA = (
    "+tpru=[lora,one_gpu_80]",
    f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={2 * SAMPLES}",
    f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={2 * SAMPLES}",
    "actor_rollout_ref.actor.fsdp_config.param_offload=false",
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload=false",
)


def report(metrics: Path, settings: Settings, shape: Shape) -> measure.Rows:
    """Medians of all steps but the first, which warms up. Raises ValueError when there are none."""
    lines = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    steps = [line for line in lines if "timing_s/step" in line][1:]
    if not steps:
        raise ValueError(f"{metrics}: found no step after the first, expected at least one")

    def of(name: str) -> float:
        return median(step[name] for step in steps)

    prompts, n, gpus = settings.integer("batch"), settings.integer("n"), settings.world
    prompt, response = of("prompt_length/mean"), of("response_length/mean")
    seconds, tokens = of("timing_s/update_actor"), of("perf/total_num_tokens")
    rows = Rows(0, IMAGES, round(response))
    estimated = step_of(settings, shape, replace(rows, text=round(prompt) - rows.prompt(settings, shape)))
    found = memory.estimate(settings, shape, prompt_tokens=round(prompt))
    vision = IMAGES * see(shape, rows.patches(settings, shape))
    operations = 3 * (prompts * n * forward(shape, round(prompt + response)) + prompts * vision)
    utilization = operations / seconds / (PEAK * gpus)
    rollout = max(estimated.images, estimated.prefill + estimated.decoding)
    peak, weights = of("actor/perf/max_memory_allocated_gb"), of("timing_s/update_weights")
    return [
        ["", "measured", "estimated"],
        ["parameters, 10^9", "", f"{shape.parameters / 1e9:.2f}"],
        ["tokens of a prompt, of a response", f"{prompt:.0f}, {response:.0f}", ""],
        ["update, s", f"{seconds:.2f}", f"{estimated.update:.2f}"],
        [
            "tokens a second and GPU",
            f"{tokens / seconds / gpus:,.0f}",
            f"{tokens / estimated.update / gpus:,.0f}",
        ],
        # A fourth of the update's operations repeats the forward pass; utilization does not count it.
        ["model FLOPs utilization", f"{utilization:.3f}", f"{TRAINING * 3 / 4:.3f}"],
        ["as veRL counts it, without offloading", f"{of('perf/mfu/actor'):.3f}", ""],
        ["peak of a GPU's memory, GiB", f"{peak:.1f}", f"{(found.update - RESERVE) / GIB:.1f}"],
        ["rollout, s", f"{of('timing_s/gen'):.2f}", f"{rollout:.2f}"],
        ["weights to vLLM, s", f"{weights:.2f}", f"{estimated.weights:.2f}"],
        ["steps counted", f"{len(steps)}, medians", ""],
    ]


def main() -> None:
    parser = measure.parser(__doc__)
    device_option(parser)
    parser.add_argument("--recipe", help="default: tpru_3b on cuda, tpru_tiny_cpu on cpu")
    shapes = {"small": SMALL, **{name: shape for name, shape in SHAPES.items() if "2.5" in name}}
    parser.add_argument("--shape", choices=shapes, default="Qwen/Qwen2.5-VL-3B-Instruct")
    parser.add_argument("--gpus", type=int, default=1, help="of one machine")
    parser.add_argument("--steps", type=int, default=4, help="the first one is not counted")
    parser.add_argument("--stock", action="store_true", help="stock veRL beside which ours is measured")
    parser.add_argument("--lora", action="store_true", help="train adapters, on one GPU of 80 GB")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe, as Hydra has them")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error(f"--steps: found {args.steps}, expected 2 or more: the first one is not counted")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        pictures = [picture(rng) for _ in range(40)]
        rows = [sample(i, pictures) for i in range(PROMPTS * args.gpus * args.steps)]
        write(folder / "train.parquet", rows)
        write_model(shapes[args.shape], folder / "model", args.device)
        chosen = [*(LORA if args.lora else ()), *(STOCK_LOOP if args.stock else ()), *args.overrides]
        recipe = args.recipe or {"cuda": "tpru_3b", "cpu": "tpru_tiny_cpu"}[args.device]
        overrides = [*overrides_of(folder, args.steps, args.gpus), *chosen]
        plan = planned(recipe, overrides, folder / "metrics.jsonl")
        plan = as_stock(plan, args.device) if args.stock else plan
        train(plan, folder / "log", echo=True)
        settings = settings_of(plan.settings, args.gpus, grown=False)
        title = f"{PROMPTS * args.gpus} prompts x {SAMPLES} a step"
        print(measure.markdown(report(folder / "metrics.jsonl", settings, shapes[args.shape]), title))


if __name__ == "__main__":
    main()
