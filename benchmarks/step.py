"""Trajectories a second through veRL's own main_ppo, stock and with our plugin.

    python benchmarks/step.py --prompts 16 32 64
    python benchmarks/step.py --steps 40 --only plugin actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64

Both run the tiny recipe of the demo, 8 answers to a prompt, on `--device`. "Stock" uses veRL's own agent loop
and processes, and keeps only the patches without which veRL does not run there. Further
arguments are overrides for both. CPU seconds are those of all processes of the run: other work on the machine
changes them less than seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import measure
import psutil
from training import device_option, measured, planned, train_watched

from tpru_verl import recipes
from tpru_verl.demo.run import moved_to
from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.launch.plan import Plan

RECIPE = "tpru_tiny_cpu"
STOCK, PLUGIN = "stock", "plugin"
STOCK_LOOP = ("actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",)
PHASES = ("gen", "old_log_prob", "adv", "update_actor", "update_weights", "step")
WARM_UP = 3  # steps that are not counted
# Patches that make a step faster. Those that a CPU needs stay.
FOR_SPEED = {
    "fork_engine",
    "fork_workers",
    "groups_on_one_rank",
    "log_probs_in_chunks",
    "no_gradients_of_frozen_tower",
    "one_copy_in_transfer",
    "one_part_needs_no_balance",
    "only_server",
    "own_log_probs",
    "process_group_once",
    "prompt_polling",
    "share_images",
    "share_prompts",
    "skip_old_log_probs",
    "vision_tower_without_loops",
    "wait_asleep",
    "without_sklearn",
}


def as_stock(plan: Plan, device: str) -> Plan:
    """The run without what makes its steps faster."""
    # On a GPU others run stock veRL with flash-attn, which has no loop over tokens either; without the
    # package the comparison would be with that loop. With it the patch changes nothing.
    skipped = FOR_SPEED if device == "cpu" else FOR_SPEED - {"log_probs_in_chunks"}
    return replace(plan, environment={**plan.environment, "TPRU_SKIP_PATCHES": ",".join(sorted(skipped))})


def run(
    kind: str, steps: int, folder: Path, overrides: list[str], device: str = "cpu"
) -> tuple[list[dict[str, float]], float]:
    """The metrics of each step after the first few, and CPU seconds a step."""
    own = measured(folder, steps + WARM_UP)
    if kind == STOCK:
        own += [*STOCK_LOOP, "actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend=mp"]
    metrics = folder / f"{kind}.jsonl"
    plan = planned(RECIPE, [*own, *overrides], metrics)
    if kind == STOCK:
        plan = as_stock(plan, device)
    here = psutil.Process()
    spent = train_watched(plan, folder / f"{kind}.log", lambda: measure.cpu_seconds(here))
    first, last = (next(cpu for at, cpu in spent if at >= step) for step in (WARM_UP, WARM_UP + steps))
    lines = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    return [line for line in lines if "timing_s/step" in line][WARM_UP:], (last - first) / steps


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=20, help=f"counted; {WARM_UP} more come first")
    parser.add_argument("--prompts", type=int, nargs="+", default=[16], help="of a step (default: 16)")
    parser.add_argument("--only", choices=(STOCK, PLUGIN))
    device_option(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    for prompts in args.prompts:
        compare(prompts, args)


def compare(prompts: int, args: argparse.Namespace) -> None:
    """Run a step of so many prompts, stock and with the plugin, and print the table."""
    overrides = [f"data.train_batch_size={prompts}", *moved_to(args.device), *args.overrides]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parquet(make_rows(prompts * (args.steps + WARM_UP), seed=1), folder / "train.parquet")
        write_parquet(make_rows(3, seed=2), folder / "test.parquet")
        config = recipes.compose(RECIPE, ["data.train_files=x", "data.val_files=x", *overrides])
        n = config["actor_rollout_ref"]["rollout"]["n"]
        kinds = [args.only] if args.only else [STOCK, PLUGIN]
        found = {kind: run(kind, args.steps, folder, overrides, args.device) for kind in kinds}
    rows = [["", *(f"{phase}, s" for phase in PHASES), "CPU s", "trajectories/s", *measure.SPREAD]]
    for kind, (steps, spent) in found.items():
        phases = (f"{median(step.get(f'timing_s/{p}', 0.0) for step in steps):.2f}" for p in PHASES)
        rates = [prompts * n / step["timing_s/step"] for step in steps]
        rows.append([kind, *phases, f"{spent:.2f}", *measure.spread(rates, ".1f")])
    print(measure.markdown(rows, f"{prompts} prompts x {n} a step, medians of {args.steps} steps"))
    if len(found) == 2:
        (slow, slow_cpu), (fast, fast_cpu) = (
            (median(step["timing_s/step"] for step in found[kind][0]), found[kind][1])
            for kind in (STOCK, PLUGIN)
        )
        print(
            f"\nStock veRL needs {slow / fast:.2f} times the seconds a step that veRL with the plugin needs, "
            f"and {slow_cpu / fast_cpu:.2f} times the CPU seconds.\n"
        )


if __name__ == "__main__":
    main()
