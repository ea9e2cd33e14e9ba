"""Memory of each process of a long run, step by step: does it stay flat?

    python benchmarks/memory.py                       # 300 steps of the tiny recipe
    python benchmarks/memory.py --steps 40 --csv memory.csv

Memory is what a process holds itself (RssAnon), in MiB; what forks share counts for each of them. Processes
of one name are added up. The growth is the slope of a straight line through all steps from the 20th on, in
MiB for 100 steps.
"""

from __future__ import annotations

import csv
import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from statistics import linear_regression

import measure
import psutil
from training import device_option, measured, planned, train_watched

from tpru_verl.demo.run import moved_to
from tpru_verl.demo.scenes import make_rows, write_parquet

RECIPE = "tpru_tiny_cpu"
SETTLED = 20  # steps until caches are full
SMALL = 1.0  # MiB: names that hold and grow less are not shown

Held = defaultdict[str, float]  # MiB by the name of the process


def held() -> Held:
    """The memory of everything that this process started."""
    total: Held = defaultdict(float)
    for process, size in measure.private_bytes(psutil.Process()).items():
        with suppress(psutil.Error):
            total[_name(process)] += size / 2**20
    return total


def _name(process: psutil.Process) -> str:
    """`ray::WorkerDict` for `ray::WorkerDict.update_actor`; a program's name without folders."""
    words = process.cmdline() or [process.name()]
    first = Path(words[0]).name if "::" not in words[0] else words[0]
    if first.startswith("python"):
        script = next((word for word in words[1:] if not word.startswith("-")), "")
        first = f"python {Path(script).name}"
    return first.partition(".")[0]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--csv", type=Path, help="write every sample here, too")
    device_option(parser)
    args = parser.parse_args()
    if args.steps < 2 * SETTLED:
        parser.error(
            f"--steps {args.steps}: expected {2 * SETTLED} or more, the first {SETTLED} do not count"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parquet(make_rows(4096, seed=1), folder / "train.parquet")
        write_parquet(make_rows(3, seed=2), folder / "test.parquet")
        overrides = [*measured(folder, args.steps), *moved_to(args.device)]
        plan = planned(RECIPE, overrides, folder / "metrics.jsonl")
        taken = train_watched(plan, folder / "train.log", held)
    if args.csv:
        write_csv(args.csv, taken)
    print(table(taken))


def table(taken: list[tuple[int, Held]]) -> str:
    """The samples nearest to some steps, and the growth of each name."""
    last, final = taken[-1]
    shown = [min(taken, key=lambda at: abs(at[0] - step)) for step in (1, SETTLED, last // 2, last)]
    settled = [(step, memory) for step, memory in taken if step >= SETTLED]
    names = sorted({name for _, memory in taken for name in memory}, key=lambda name: -final[name])
    rows: list[list[str]] = []
    for name in names:
        slope = linear_regression([at for at, _ in settled], [memory[name] for _, memory in settled]).slope
        if final[name] >= SMALL or abs(100 * slope) >= SMALL:
            rows.append([name, *(f"{memory[name]:,.0f}" for _, memory in shown), f"{100 * slope:+.1f}"])
    header = ["MiB at step", *(str(step) for step, _ in shown), "growth for 100 steps"]
    return measure.markdown([header, *rows], f"Tiny recipe, {last} steps")


def write_csv(path: Path, taken: list[tuple[int, Held]]) -> None:
    names = sorted({name for _, memory in taken for name in memory})
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["step", *names])
        lines.writerows([step, *(f"{memory[name]:.1f}" for name in names)] for step, memory in taken)


if __name__ == "__main__":
    main()
