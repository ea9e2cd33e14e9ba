"""Five steps of the tiny model through a GPU recipe: do CUDA, vLLM, FSDP2 and bf16 work on this machine?

    python benchmarks/gpu_smoke.py                 # one GPU
    python benchmarks/gpu_smoke.py --device cpu --steps 2              # the same script without a GPU
    python benchmarks/gpu_smoke.py --out smoke                         # rows and metrics are kept there

It prints seconds of each phase, memory, and how much vLLM's probabilities differ from the trainer's. Without
the package flash-attn it takes PyTorch's attention.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median

import measure
from training import MEASURED, device_option, planned, train

from tpru_verl.demo.run import CHECKPOINT
from tpru_verl.demo.scenes import make_rows, write_parquet

SHOWN = (
    "timing_s/gen",
    "timing_s/old_log_prob",
    "timing_s/ref",
    "timing_s/update_actor",
    "timing_s/update_weights",
    "timing_s/step",
    "actor/perf/max_memory_allocated_gb",
    "perf/throughput",
    "training/rollout_probs_diff_mean",
    "training/rollout_probs_diff_max",
    "training/rollout_actor_probs_pearson_corr",
)
RECIPES = {"cuda": "tpru_7b", "cpu": "tpru_tiny_cpu"}
# The tiny model and its 56 x 56 pictures in place of the recipe's own; everything else stays the recipe's.
TINY = [
    f"actor_rollout_ref.model.path={CHECKPOINT}",
    "data.prompt_template=bare",
    "data.min_pixels=3136",
    "data.max_pixels=3136",
    "data.max_prompt_length=384",
    "data.max_response_length=32",
    "data.train_batch_size=16",
    "data.filter_overlong_prompts=false",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=64",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=64",
    "actor_rollout_ref.rollout.max_model_len=416",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
    "trainer.n_gpus_per_node=1",
    *MEASURED,
]


def overrides_of(folder: Path, steps: int) -> list[str]:
    files = [f"data.train_files={folder}/train.parquet", f"data.val_files={folder}/test.parquet"]
    own = [f"trainer.total_training_steps={steps}", f"trainer.default_local_dir={folder}/checkpoints"]
    return [*files, *TINY, *own]


def report(metrics: Path) -> measure.Rows:
    """First step (start-up effects) and median of the others, for each of `SHOWN` that the run logged."""
    lines = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    steps = [line for line in lines if "timing_s/step" in line]
    if not steps:
        raise ValueError(f"{metrics}: no training step in it")
    table = [["metric", "first step", f"median of {len(steps) - 1} more"]]
    for name in SHOWN:
        values = [step[name] for step in steps if step.get(name) is not None]
        if values:
            later = f"{median(values[1:]):.4f}" if values[1:] else ""
            table.append([name, f"{values[0]:.4f}", later])
    return table


def main() -> None:
    parser = measure.parser(__doc__)
    device_option(parser)
    parser.add_argument("--recipe", help="default: tpru_7b on cuda, tpru_tiny_cpu on cpu")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a new folder, to keep rows and metrics in")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe, as Hydra has them")
    arguments = parser.parse_args()
    if arguments.out and arguments.out.exists():
        parser.error(f"--out {arguments.out}: found something there, expected a new folder")
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.out.absolute() if arguments.out else Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        write_parquet(make_rows(16 * arguments.steps, seed=1), folder / "train.parquet")
        write_parquet(make_rows(15, seed=2), folder / "test.parquet")
        overrides = [*overrides_of(folder, arguments.steps), *arguments.overrides]
        recipe = arguments.recipe or RECIPES[arguments.device]
        train(planned(recipe, overrides, folder / "metrics.jsonl"), folder / "log", echo=True)
        print(measure.markdown(report(folder / "metrics.jsonl"), "Tiny model, 16 prompts x 8"))


if __name__ == "__main__":
    main()
