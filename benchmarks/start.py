"""From the command to the end of the first step, with forks and without.

    python benchmarks/start.py --turns 3

Runs the tiny recipe for two steps of 16 prompts x 8, without validation, in turns: with all of the plugin's
patches, and without `fork_workers` and `fork_engine`. CPU seconds are those of all processes until then;
memory is their share of what they hold (PSS), so that pages of several processes count once.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import measure
import psutil
from training import device_option, measured, planned, train_watched

from tpru_verl.demo.run import moved_to
from tpru_verl.demo.scenes import make_rows, write_parquet

RECIPE = "tpru_tiny_cpu"
PROMPTS = 16
KINDS = {"with forks": "", "without": "fork_engine,fork_workers"}  # skipped patches


def start(skipped: str, folder: Path, overrides: Sequence[str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and GiB at the end of the first step of a run."""
    metrics = folder / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    plan = planned(RECIPE, [*measured(folder, 2), *overrides], metrics)
    plan = replace(plan, environment={**plan.environment, "TPRU_SKIP_PATCHES": skipped})
    here = psutil.Process()
    began, spent = time.perf_counter(), measure.cpu_seconds(here)

    def so_far() -> tuple[float, float, float]:
        seconds = time.perf_counter() - began
        return seconds, measure.cpu_seconds(here) - spent, sum(map(_pss, _started(here))) / 2**20

    return train_watched(plan, folder / "log", so_far)[0][1]


def _started(process: psutil.Process) -> list[int]:
    return [child.pid for child in process.children(recursive=True)]


def _pss(pid: int) -> int:
    """KiB; 0 of a process that has just ended."""
    with suppress(OSError):
        if found := re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE):
            return int(found[1])
    return 0


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--turns", type=int, default=3)
    device_option(parser)
    args = parser.parse_args()
    overrides = [f"data.train_batch_size={PROMPTS}", *moved_to(args.device)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parquet(make_rows(PROMPTS * 2, seed=1), folder / "train.parquet")
        write_parquet(make_rows(3, seed=2), folder / "test.parquet")
        tasks = {kind: partial(start, skipped, folder, overrides) for kind, skipped in KINDS.items()}
        found = measure.in_turn(tasks, args.turns)
    rows = [["", "seconds", *measure.SPREAD, "CPU s", *measure.SPREAD, "memory, GiB", *measure.SPREAD]]
    for kind, results in found.items():
        columns = zip(*results, strict=True)
        rows.append([kind, *(cell for values in columns for cell in measure.spread(values, ".1f"))])
    print(
        measure.markdown(rows, f"{PROMPTS} prompts x 8, until the end of the first step, {args.turns} turns")
    )


if __name__ == "__main__":
    main()
