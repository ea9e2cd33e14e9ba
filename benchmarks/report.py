"""What a long run costs to report, and to watch: `tpru report`, and a step of `tpru train`'s monitor.

    python benchmarks/report.py
    python benchmarks/report.py --steps 100 --keep outputs/made_run

The run is made, not trained: 10 prompts with 5 responses of 120 words at each step, and a validation of 461
rows every 50 steps. CPU seconds are those of all cores; other work on the machine makes them grow less than
the others. The page of `--keep FOLDER` can be opened in a browser. The monitor is timed over 20 steps of 50
responses, after those of the table without any.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import measure

from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.launch.monitor import Monitor
from tpru_verl.launch.settings import Settings
from tpru_verl.sample import IMAGE_TAG, Sample
from tpru_verl.trainers import VERL

PROMPTS, EACH, VALIDATED, EVERY = 10, 5, 461, 50
WORDS = [
    "the",
    "hand",
    "lifts",
    "a",
    "red",
    "block",
    "and",
    "puts",
    "it",
    "on",
    "top",
    "of",
    "the",
    "tower",
    "while",
    "the",
    "arm",
    "moves",
    "left",
]
METRICS = [
    "critic/score/max",
    "critic/score/min",
    "actor/grad_norm",
    "actor/ppo_kl",
    "actor/kl_loss",
    "actor/entropy",
    "training/rollout_actor_probs_pearson_corr",
    "response_length/mean",
    "response_length/max",
    "response_length/clip_ratio",
    "timing_s/gen",
    "timing_s/update_actor",
    "timing_s/step",
    "perf/throughput",
    "actor/perf/cpu_memory_used_gb",
    "actor/perf/max_memory_allocated_gb",
]


def make_run(folder: Path, steps: int) -> None:
    """A run's folder with metrics, recipe, rows, rollouts and validations."""
    rng = random.Random(0)
    train, test = _rows(2000, 1, rng), _rows(VALIDATED, 2, rng)
    write_parquet(train, folder / "train.parquet")
    write_parquet(test, folder / "test.parquet")
    files = {"train_files": str(folder / "train.parquet"), "val_files": str(folder / "test.parquet")}
    recipe = {"actor_rollout_ref": {}, "data": {**files, "max_response_length": 1024}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    for name in ("rollouts", "validation"):
        (folder / name).mkdir()
    lines: list[str] = []
    for step in range(1, steps + 1):
        right = 0.35 + 0.35 * step / steps
        drawn = rng.sample(train, PROMPTS)
        (folder / f"rollouts/{step}.jsonl").write_text("".join(_answers(drawn, step, EACH, right, rng)))
        if step % EVERY == 0:
            validated = "".join(_answers(test, step, 1, right, rng))
            (folder / f"validation/{step}.jsonl").write_text(validated)
        lines.append(_metrics(step, right, rng))
    (folder / "metrics.jsonl").write_text("".join(lines))


def _metrics(step: int, right: float, rng: random.Random) -> str:
    data = {"critic/score/mean": right + rng.gauss(0, 0.06)}
    data |= {name: 1 + rng.uniform(-0.1, 0.1) for name in METRICS}
    return json.dumps({"step": step, "data": data}) + "\n"


def _rows(count: int, seed: int, rng: random.Random) -> list[Sample]:
    """Rows of the demo, each with a text of its own."""
    made = make_rows(count, seed=seed)
    return [replace(row, problem=f"{i}: {_text(20, rng)}. {row.problem}") for i, row in enumerate(made)]


def _text(words: int, rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def _answers(rows: Sequence[Sample], step: int, each: int, right: float, rng: random.Random) -> Iterator[str]:
    for row in rows:
        uid = f"{rng.getrandbits(128):032x}"
        for sample in range(each):
            is_right = rng.random() < right
            letter = row.answer if is_right else rng.choice("ABCDE".replace(row.answer, ""))
            record = {
                "input": f"user\n{row.problem.replace(IMAGE_TAG, '')}\nassistant\n",
                "output": f"<think>{_text(120, rng)}</think><answer>{letter}</answer>",
                "gts": row.answer,
                "score": 1.0 if is_right else 0.125,
                "step": step,
                "uid": f"{uid}_{sample}_0",
            }
            yield json.dumps(record) + "\n"


def measured(folder: Path) -> tuple[float, float, float]:
    """Seconds, CPU seconds and the page's megabytes of `tpru report FOLDER`."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-c", "from tpru_verl.cli import main; main()", "report", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, (folder / "report.html").stat().st_size / 1e6


def monitored(folder: Path, steps: int, more: int = 20) -> float:
    """CPU milliseconds of the monitor for a step, the median of `more` steps that follow on `steps`."""
    rng, rows, metrics = random.Random(0), _rows(PROMPTS, 1, random.Random(0)), folder / "metrics.jsonl"
    metrics.write_text("".join(_metrics(step, 0.5, rng) for step in range(1, steps + 1)))
    (folder / "rollouts").mkdir()
    monitor = Monitor(folder, Settings(VERL, {}), total=0, resumed_at=steps, line=False)
    found: list[float] = []
    for step in range(steps + 1, steps + more + 1):
        (folder / f"rollouts/{step}.jsonl").write_text("".join(_answers(rows, step, EACH, 0.5, rng)))
        with metrics.open("a") as file:
            file.write(_metrics(step, 0.5, rng))
        started = time.process_time()
        monitor()
        found.append(1000 * (time.process_time() - started))
    return median(found)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="make the run in this new folder, and keep it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_run(folder, args.steps)
        seconds, cpu, size = measured(folder)
    rows = [
        ["steps", "responses", "seconds", "CPU seconds", "page, MB"],
        [
            f"{args.steps:,}",
            f"{args.steps * PROMPTS * EACH:,}",
            f"{seconds:.1f}",
            f"{cpu:.1f}",
            f"{size:.1f}",
        ],
    ]
    print(measure.markdown(rows, "`tpru report` of a made run"))
    watched = [["steps before", "CPU ms a step"]]
    for before in (10, 1000, 10_000):
        with tempfile.TemporaryDirectory() as temporary:
            watched.append([f"{before:,}", f"{monitored(Path(temporary), before):.1f}"])
    print()
    print(measure.markdown(watched, "The monitor of `tpru train`: a step with 50 responses"))


if __name__ == "__main__":
    main()
