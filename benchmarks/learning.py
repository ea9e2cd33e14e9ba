"""Steps and seconds until a held-out accuracy is reached on the demo's task, by setting and seed.

    python benchmarks/learning.py --seeds 1 2 3 --targets 0.5 0.55 --out outputs/learning
    python benchmarks/learning.py --settings ours partial --steps 100

Each run starts veRL's main_ppo from the demo's checkpoint and validates every few steps, with one answer a
row, sampled at temperature 1. A target is reached at the first validation whose mean with the next validation
is at least the target. A run that has finished in `--out` is not repeated: name another folder after a change
of code. Seconds count steps, not start or validation.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import measure
from training import device_option, planned, train

from tpru_verl.demo.run import moved_to
from tpru_verl.demo.scenes import make_rows, write_parquet

RECIPE = "tpru_tiny_cpu"
# What was published for 7B, where it has a meaning for the tiny model: its learning rate of 1e-6 has none.
PUBLISHED = [
    "reward.custom_reward_function.reward_kwargs.preset=paper",
    "data.train_batch_size=24",
    "actor_rollout_ref.actor.ppo_mini_batch_size=12",
    "actor_rollout_ref.rollout.n=5",
    "actor_rollout_ref.rollout.top_p=0.99",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=60",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=60",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=60",
    "actor_rollout_ref.actor.use_kl_loss=true",
    "actor_rollout_ref.actor.kl_loss_type=low_var_kl",
    "actor_rollout_ref.actor.kl_loss_coef=0.01",
]
SETTINGS = {
    "published": PUBLISHED,
    "ours": [],
    "filter": ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=reward"],
    "partial": ["reward.custom_reward_function.reward_kwargs.preset=tpru_partial"],
}
MEANING = {
    "published": "published reward and settings",
    "ours": "our reward and settings",
    "filter": "ours, groups of one score left out",
    "partial": "ours, partial credit for orders",
}


def run(setting: str, seed: int, args: argparse.Namespace) -> Path:
    """The metrics file of a run; made unless it is there."""
    folder = args.out / f"{setting}-{seed}"
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        return metrics
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [
        f"data.train_files={args.out}/train-{seed}.parquet",
        f"data.val_files={args.out}/test.parquet",
        f"data.seed={seed}",
        f"actor_rollout_ref.rollout.seed={seed}",
        f"trainer.total_training_steps={args.steps}",
        f"trainer.test_freq={args.every}",
        "trainer.val_before_train=true",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=true",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
        "trainer.save_freq=-1",
        "trainer.resume_mode=disable",
        f"trainer.default_local_dir={folder}/checkpoints",
        f"hydra.run.dir={folder}/hydra",
        *moved_to(args.device),
        *SETTINGS[setting],
    ]
    unfinished = folder / "metrics.unfinished.jsonl"
    unfinished.unlink(missing_ok=True)
    train(planned(RECIPE, overrides, unfinished), folder / "log")
    unfinished.rename(metrics)
    return metrics


def curve(metrics: Path) -> list[tuple[int, float, float]]:
    """(step, seconds of that many steps, held-out accuracy over the tasks) of each validation."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    # The median, for what else the machine does for a moment; validation is beside it.
    a_step = median(line["data"]["timing_s/step"] for line in lines if "timing_s/step" in line["data"])
    found: list[tuple[int, float, float]] = []
    for line in lines:
        data = line["data"]
        shares = [value for key, value in data.items() if key.startswith("val-core/") and "/acc/" in key]
        if shares:
            found.append((line["step"], line["step"] * a_step, sum(shares) / len(shares)))
    return found


def reached(points: list[tuple[int, float, float]], target: float) -> tuple[int, float] | None:
    for (step, seconds, one), (_, _, two) in pairwise(points):
        if (one + two) / 2 >= target:
            return step, seconds
    return None


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=5, help="steps between validations")
    parser.add_argument("--rows", type=int, default=300, help="held-out rows")
    parser.add_argument("--targets", nargs="+", type=float, default=[0.5, 0.55])
    parser.add_argument("--out", type=Path, default=Path("outputs/learning"))
    device_option(parser)
    args = parser.parse_args()
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    asked = {"steps": args.steps, "every": args.every, "rows": args.rows}
    if (kept := args.out / "asked.json").exists() and json.loads(kept.read_text()) != asked:
        parser.error(f"--out {args.out}: found runs with {kept.read_text()}, expected {json.dumps(asked)}")
    kept.write_text(json.dumps(asked))
    write_parquet(make_rows(args.rows, seed=4_000_000), args.out / "test.parquet")
    for seed in args.seeds:
        write_parquet(make_rows(24 * args.steps, seed=seed), args.out / f"train-{seed}.parquet")
    aims = [f"steps, seconds to {target:.0%}" for target in args.targets]
    table = [["", "seed", "before", *aims, "mean of the last four", "s a step"]]
    for seed in args.seeds:
        for setting in args.settings:
            points = curve(run(setting, seed, args))
            found = [reached(points, target) for target in args.targets]
            cells = [f"{at[0]}, {at[1]:.0f}" if at else f"more than {points[-1][0]}" for at in found]
            last = mean(accuracy for _, _, accuracy in points[-4:])
            a_step = points[-1][1] / points[-1][0]
            before = f"{points[0][2]:.1%}"
            table.append([MEANING[setting], str(seed), before, *cells, f"{last:.1%}", f"{a_step:.1f}"])
    print(measure.markdown(table, f"Demo task, {args.rows} held-out rows every {args.every} steps"))


if __name__ == "__main__":
    main()
