"""Steps of the tiny recipe with each overlay, through veRL's own main_ppo on a CPU.

    python benchmarks/overlays.py                     # all overlays
    python benchmarks/overlays.py --only lora dapo    # these, beside the plain recipe
    python benchmarks/overlays.py --only lora,dapo    # both in one run

Each line is one run. Seconds are those of its last step; other work on the machine stretches them.
The correlation is veRL's, of the probabilities of vLLM and the actor. `lora` saves a checkpoint and goes on
from it in a second run. On a GPU the balance differs, because there the model's arithmetic counts more.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import measure
from training import MEASURED, planned, train

from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.recipes import overlays

RECIPE, PROMPTS = "tpru_tiny_cpu", 16
CORRELATION = "training/rollout_actor_probs_pearson_corr"
# What shows that an overlay does its work.
SIGNS = (
    "actor/kl_loss",
    "training/filter_groups/evicted_samples",
    "rollout_corr/rollout_is_mean",
    "actor/pg_clipfrac",
)
_SMALL = [f"data.train_batch_size={PROMPTS}", f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}"]
# The tiny recipe has responses of 32 tokens, batches of 16 prompts and no KL term. With LoRA the reference of
# a KL term is the actor without its adapters.
NEEDED = {
    "lora": [
        "actor_rollout_ref.actor.use_kl_loss=true",
        "+actor_rollout_ref.actor.checkpoint.save_lora_only=true",
    ],
    "dapo": ["reward.reward_kwargs.overlong_buffer_cfg.len=8"],
    **{name: _SMALL for name in overlays.names() if name.startswith("one_gpu")},
}


def run(name: str, steps: int, folder: Path, *extra: str) -> list[dict[str, float]]:
    """The metrics of each step of a run with the overlay `name`, several with commas, "" for none."""
    files = [f"data.{split}_files={folder / f'{split}.parquet'}" for split in ("train", "val")]
    chosen = [f"+tpru=[{name}]"] if name else []
    needed = [item for each in name.split(",") for item in NEEDED.get(each, [])]
    limits = [f"trainer.total_training_steps={steps}", f"trainer.default_local_dir={folder / 'checkpoints'}"]
    hydra = [f"hydra.run.dir={folder / 'hydra'}"]
    metrics = folder / f"steps-{steps}.jsonl"
    overrides = [*files, *chosen, *limits, *MEASURED, *needed, *hydra, *extra]
    plan = planned(RECIPE, overrides, metrics)
    plan.check()
    train(plan, folder / f"{steps}.log")
    lines = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    return [line for line in lines if CORRELATION in line]


def line_of(name: str, steps: int) -> list[str]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        # Filtering may ask for more prompts than a step has.
        write_parquet(make_rows(3 * PROMPTS * steps, seed=1), folder / "train.parquet")
        write_parquet(make_rows(3, seed=2), folder / "val.parquet")
        if name == "lora":
            saved = run(name, steps, folder, f"trainer.save_freq={steps}")
            for path in sorted((folder / f"checkpoints/global_step_{steps}/actor").glob("*.*")):
                print(f"{path.name}: {path.stat().st_size:,} bytes", file=sys.stderr)
            found = [*saved, *run(name, steps + 1, folder, "trainer.resume_mode=auto")]
        else:
            found = run(name, steps, folder)
    signs = [f"{key.split('/')[-1]} {found[-1][key]:.3g}" for key in SIGNS if key in found[-1]]
    return [
        name or "(none)",
        str(len(found)),
        f"{found[-1]['timing_s/step']:.1f}",
        f"{min(step[CORRELATION] for step in found):.4f}",
        ", ".join(signs),
    ]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--only", nargs="*", default=overlays.names(), metavar="OVERLAY")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--without-plain", action="store_true", help="leave out the run without an overlay")
    args = parser.parse_args()
    rows = [["overlay", "steps", "s, the last step", "lowest correlation", "signs"]]
    for name in [*([] if args.without_plain else [""]), *args.only]:
        try:
            rows.append(line_of(name, args.steps + (name == "lora")))
        except SystemExit as end:
            if not isinstance(end.code, str):  # a signal
                raise
            rows.append([name, "", "", "", str(end)])
        print(*rows[-1], sep=", ", file=sys.stderr, flush=True)
    print(measure.markdown(rows, f"Tiny recipe, {PROMPTS} prompts x 8"))


if __name__ == "__main__":
    main()
