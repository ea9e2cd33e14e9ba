"""Steps and seconds until a held-out accuracy is reached on the demo's task, by setting, rate and seed.

    python benchmarks/learning.py --seeds 1 2 3 --targets 0.5 0.6 --out outputs/learning
    python benchmarks/learning.py --settings ours dapo --rates 1e-4 3e-4 1e-3 --seeds 1   # tune first

Each run starts veRL's main_ppo from the demo's checkpoint and validates every few steps, with one answer a
row, sampled at temperature 1. A target is reached at the first validation whose mean with the next validation
is at least the target. A run that has finished in `--out` is not repeated: name another folder after a change
of code. Seconds count steps, not start or validation. Every setting samples 256 or 260 answers a step. All
but `published`, `updates2`, `updates4` and `epochs2` update once, so that ratios are 1 and no clip acts.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, median

import measure
from training import device_option, planned, train

from tpru_verl.demo.run import moved_to
from tpru_verl.demo.scenes import UNSEEN, make_rows, write_parquet
from tpru_verl.statistics import wilson

RECIPE = "tpru_tiny_cpu"
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
# Micro-batches that divide 52 prompts, and 26, of 5 answers.
FIVES = [
    f"{ACTOR}.ppo_micro_batch_size_per_gpu=65",
    f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=65",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=65",
]
# What was published for 7B, where it has a meaning for the tiny model: its learning rate of 1e-6 has none.
PUBLISHED = [
    "reward.custom_reward_function.reward_kwargs.preset=paper",
    "data.train_batch_size=52",
    f"{ACTOR}.ppo_mini_batch_size=26",
    f"{ROLLOUT}.n=5",
    f"{ROLLOUT}.top_p=0.99",
    *FIVES,
    f"{ACTOR}.use_kl_loss=true",
    f"{ACTOR}.kl_loss_type=low_var_kl",
    f"{ACTOR}.kl_loss_coef=0.01",
]
SETTINGS = {
    "published": PUBLISHED,
    "ours": [],
    # The overlay's buffer of 256 tokens is for long answers.
    "dapo": ["+tpru=dapo", "reward.reward_kwargs.overlong_buffer_cfg.len=8"],
    "gspo": ["+tpru=gspo"],
    "drgrpo": ["+tpru=drgrpo"],
    "cispo": ["+tpru=cispo"],
    "n4": ["data.train_batch_size=64", f"{ROLLOUT}.n=4"],
    "n5": ["data.train_batch_size=52", f"{ROLLOUT}.n=5", *FIVES],
    "n16": ["data.train_batch_size=16", f"{ROLLOUT}.n=16"],
    "updates2": [f"{ACTOR}.ppo_mini_batch_size=16"],
    "updates4": [f"{ACTOR}.ppo_mini_batch_size=8", f"{ACTOR}.ppo_micro_batch_size_per_gpu=64"],
    "epochs2": [f"{ACTOR}.ppo_epochs=2"],
    # Weights whose gradients are small beside it move less: they are noise for the most part.
    "epsilon": [f"+{ACTOR}.optim.override_optimizer_config.eps=1e-4"],
    "warm2": [f"{ACTOR}.optim.lr_warmup_steps=2"],
    "partial": ["reward.custom_reward_function.reward_kwargs.preset=tpru_partial"],
}
MEANING = {
    "published": "published reward and settings",
    "ours": "our reward and settings, 32 x 8",
    "dapo": "ours, `+tpru=dapo`",
    "gspo": "ours, `+tpru=gspo`",
    "drgrpo": "ours, `+tpru=drgrpo`",
    "cispo": "ours, `+tpru=cispo`",
    "n4": "ours, 64 x 4",
    "n5": "ours, 52 x 5",
    "n16": "ours, 16 x 16",
    "updates2": "ours, two updates a step",
    "updates4": "ours, four updates a step",
    "epochs2": "ours, each answer learned from twice",
    "epsilon": "ours, 1e-4 for Adam's epsilon, not 1e-8",
    "warm2": "ours, two steps of warm-up, not ten",
    "partial": "ours, partial credit for orders",
}


def run(setting: str, rate: str, seed: int, args: argparse.Namespace) -> Path:
    """The metrics file of a run; made unless it is there."""
    folder = args.out / f"{setting}-{rate}-{seed}"
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
        f"actor_rollout_ref.actor.optim.lr={rate}",
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
    parser.add_argument("--rates", nargs="+", default=["3e-4"], help="learning rates (default: 3e-4)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=5, help="steps between validations")
    parser.add_argument("--rows", type=int, default=300, help="held-out rows")
    parser.add_argument("--targets", nargs="+", type=float, default=[0.5, 0.6])
    parser.add_argument("--out", type=Path, default=Path("outputs/learning"))
    device_option(parser)
    args = parser.parse_args()
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    asked = {"steps": args.steps, "every": args.every, "rows": args.rows}
    if (kept := args.out / "asked.json").exists() and json.loads(kept.read_text()) != asked:
        parser.error(f"--out {args.out}: found runs with {kept.read_text()}, expected {json.dumps(asked)}")
    kept.write_text(json.dumps(asked))
    write_parquet(make_rows(args.rows, seed=4_000_000, scenes=(UNSEEN,)), args.out / "test.parquet")
    for seed in args.seeds:
        # dapo may draw a group three times.
        rows = make_rows(3 * 52 * args.steps, seed=seed, scenes=(UNSEEN,))
        write_parquet(rows, args.out / f"train-{seed}.parquet")
    aims = [f"steps, seconds to {target:.0%}" for target in args.targets]
    table = [["", "rate", "seed", "before", *aims, "mean of the last four", "s a step"]]
    for seed, setting, rate in product(args.seeds, args.settings, args.rates):
        points = curve(run(setting, rate, seed, args))
        table.append([MEANING[setting], rate, str(seed), *line(points, args.targets, args.rows)])
        print(*table[-1], sep=", ", file=sys.stderr)  # as they come: all of it takes hours
    print(measure.markdown(table, f"Demo task, {args.rows} held-out rows every {args.every} steps"))


def line(points: list[tuple[int, float, float]], targets: list[float], rows: int) -> list[str]:
    """A run in cells. The interval is that of one validation: the last four ask the same rows."""
    found = [reached(points, target) for target in targets]
    cells = [f"{at[0]}, {at[1]:.0f}" if at else f"more than {points[-1][0]}" for at in found]
    last = mean(accuracy for _, _, accuracy in points[-4:])
    low, high = wilson(last * rows, rows)
    a_step = points[-1][1] / points[-1][0]
    return [f"{points[0][2]:.1%}", *cells, f"{last:.1%} [{low:.1%}, {high:.1%}]", f"{a_step:.1f}"]


if __name__ == "__main__":
    main()
