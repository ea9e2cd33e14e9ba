"""Two steps of veRL's trainer for a tiny model of each family: does vLLM sample from what the actor trains?

    python benchmarks/families.py
    python benchmarks/families.py --only qwen3_vl --keep FOLDER actor_rollout_ref.rollout.n=4

The models have random weights (`tpru_verl/demo/tiny_families.py`), transformers' own classes and processors.
The correlation is that of the probabilities of vLLM and of the actor for the sampled tokens; 1 is right.
Further arguments are overrides for all. A family that fails has its first error in the table.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import measure
from training import measured, planned, train

from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.demo.tiny_families import overrides, save
from tpru_verl.models import FAMILIES, Family

CORRELATION = "training/rollout_actor_probs_pearson_corr"
# Random models earn nothing, so entropy gives the gradient. With steps so large, vLLM would not agree with
# the actor in the second step unless the new weights had reached it.
LARGE_STEPS = (
    "actor_rollout_ref.actor.entropy_coeff=0.1",
    "actor_rollout_ref.actor.optim.lr=3e-3",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
)


def run(family: Family, folder: Path, steps: int, told: list[str]) -> list[dict[str, float]]:
    """The metrics of each step. Raises SystemExit with the first error of a run that fails."""
    own = [
        *overrides(family, save(family, folder / "model")),
        *measured(folder, steps, folder.parent),
        *LARGE_STEPS,
    ]
    metrics = folder / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    train(planned("tpru_tiny_cpu", [*own, *told], metrics), folder / "log")
    lines = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    return [line for line in lines if CORRELATION in line]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="MODEL_TYPE")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="models, logs and metrics stay there")
    args, told = parser.parse_known_args()
    table = [["family", "correlation, each step", "gradient norm, each step", "seconds, last step"]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.keep or Path(temporary)).absolute()
        for name, rows in (("train", make_rows(256, seed=5)), ("test", make_rows(8, seed=6))):
            write_parquet(rows, folder / f"{name}.parquet")
        for name in args.only:
            try:
                steps = run(FAMILIES[name], folder / name, args.steps, told)
            except SystemExit as end:
                if not isinstance(end.code, str):  # a signal
                    raise
                table.append([FAMILIES[name].name, str(end), "", ""])
                continue
            told_of = [
                ", ".join(f"{step[key]:.4f}" for step in steps) for key in (CORRELATION, "actor/grad_norm")
            ]
            table.append([FAMILIES[name].name, *told_of, f"{steps[-1]['timing_s/step']:.1f}"])
    print(measure.markdown(table))


if __name__ == "__main__":
    main()
