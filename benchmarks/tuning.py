"""What each setting of the tiny recipe costs or saves in a step, through veRL's own main_ppo.

    python benchmarks/tuning.py                       # all settings
    python benchmarks/tuning.py --only mini-batches "prefix caching"
    python benchmarks/tuning.py --device cuda

Each line is one run of the recipe with one change. CPU seconds are those of all processes of the run; seconds
are medians. On a machine that others share, trust the CPU seconds. On a GPU the balance differs: there the
model's arithmetic counts more, and the time that Ray, vLLM's scheduler and Python take counts less.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

import measure
from step import PLUGIN, WARM_UP, run
from training import device_option

from tpru_verl.demo.run import moved_to
from tpru_verl.demo.scenes import make_rows, write_parquet

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
VLLM = f"{ROLLOUT}.engine_kwargs.vllm"
CHANGES = {
    "the recipe": [],
    "no prefix caching": [f"{ROLLOUT}.enable_prefix_caching=false"],
    "prefix caching in blocks of 32 tokens, not 128": [f"+{VLLM}.block_size=32"],
    "no chunked prefill": [f"{ROLLOUT}.enable_chunked_prefill=false"],
    "no cache of processed images": [f"+{VLLM}.mm_processor_cache_gb=0"],
    "micro-batches of 16 sequences, not 128": [f"{ACTOR}.ppo_micro_batch_size_per_gpu=16"],
    "dynamic batch size, 6,144 tokens": [
        f"{ACTOR}.use_dynamic_bsz=true",
        f"{ACTOR}.ppo_max_token_len_per_gpu=6144",
    ],
    "two mini-batches a step": [f"{ACTOR}.ppo_mini_batch_size=16"],
    "a reference model (KL loss)": [f"{ACTOR}.use_kl_loss=true"],
    "groups of one score left out": [
        "algorithm.filter_groups.enable=true",
        "algorithm.filter_groups.metric=reward",
    ],
}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=8, help=f"counted; {WARM_UP} more come first")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        help="lines that have one of these in their name, beside the recipe",
    )
    device_option(parser)
    args = parser.parse_args()
    rows = [["", "rollout, s", "update, s", "step, s", "CPU s a step", "times the recipe's CPU s"]]
    base = 0.0
    for name, overrides in CHANGES.items():
        if overrides and not any(part in name for part in args.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            # Filtering may ask for more prompts than a step has.
            write_parquet(make_rows(96 * (args.steps + WARM_UP), seed=1), Path(folder, "train.parquet"))
            write_parquet(make_rows(3, seed=2), Path(folder, "test.parquet"))
            steps, spent = run(PLUGIN, args.steps, Path(folder), [*moved_to(args.device), *overrides])
        base = base or spent
        seconds = [
            f"{median(s.get(f'timing_s/{phase}', 0.0) for s in steps):.2f}"
            for phase in ("gen", "update_actor", "step")
        ]
        rows.append([name, *seconds, f"{spent:.2f}", f"{spent / base:.2f}"])
        print(*rows[-1], sep=", ", file=sys.stderr)  # as they come: all of it takes half an hour
    print(measure.markdown(rows, f"Tiny recipe, 32 prompts x 8, medians of {args.steps} steps"))


if __name__ == "__main__":
    main()
