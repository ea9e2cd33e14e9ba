"""Kills the processes of a run with `kill -9`, one after another, and resumes the run after each.

    python benchmarks/kills.py --out outputs/kills --kills 20

The run is `tpru train tpru_tiny_cpu` on rows of the demo, on this machine's CPU, and saves at each step. A
start lasts one to two minutes on two cores. After each kill the script looks whether `tpru train` ended by
itself, how fast and with which cause, and whether the checkpoint that the tracker names is whole. At the end,
each step must have been trained on the same rows as in a run that nobody kills.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from measure import markdown, parser

from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.launch.resume import TRACKER, is_whole

# What is killed: how the command line of its process looks.
VICTIMS = {
    "driver": r"verl\.trainer\.main_ppo",
    "trainer": r"ray::TaskRunner",
    "FSDP worker": r"ray::WorkerDict",
    "agent-loop worker": r"ray::TPRUAgentLoopWorker",
    "reward worker": r"ray::RewardLoopWorker",
    "vLLM server": r"ray::vLLMHttpServer",
    "vLLM engine": r"VLLM::EngineCore",
    "raylet": r"/raylet ",
}
SMALL = ("trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=1")
PATIENCE = 600  # seconds for a start, and for the end after a kill


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("outputs/kills"), help="an empty folder")
    options.add_argument("--kills", type=int, default=20)
    options.add_argument(
        "--steps", type=int, help="of the whole run; default: two more than kills, at least 12"
    )
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    steps = given.steps or max(12, given.kills + 2)
    rng = random.Random(given.seed)
    given.out.mkdir(parents=True)
    rows = given.out / "rows.parquet"
    write_parquet(make_rows(512, seed=1), rows)
    new = ["tpru_tiny_cpu", f"data.train_files={rows}", f"data.val_files={rows}", *SMALL]
    new += [f"trainer.total_training_steps={steps}"]
    whole, run = given.out / "uninterrupted", given.out / "killed"
    ended = start([*new, "--out", str(whole)]).wait()
    if ended:
        sys.exit(f"the run that nobody kills ended with exit code {ended}: {whole}/train.log")
    table = [["kill", "of", "at step", "in a save", "seconds to the end", "cause named", "tracker"]]
    order = [*rng.sample(list(VICTIMS), len(VICTIMS)) * given.kills][: given.kills]
    arguments = [*new, "--out", str(run)]
    for number, victim in enumerate(order, start=1):
        table.append([str(number), victim, *kill(arguments, run, victim, rng, in_save=number % 3 == 0)])
        print(markdown([table[0], table[-1]]), flush=True)
        arguments = ["--resume", str(run)]
    code = start(arguments).wait()
    print(markdown(table, f"{given.kills} kills of one run of {steps} steps"))
    print(f"\nexit code of the last start: {code}")
    print(f"steps logged: {'each once' if logged(run) == list(range(1, steps + 1)) else logged(run)}")
    differ = [step for step in range(1, steps + 1) if row_ids(run, step) != row_ids(whole, step)]
    print(f"steps on other rows than in the run that nobody killed: {differ or 'none'}")
    print(f"rewards that are equal in both: {equal(run, whole)} of {steps}")


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """All answers are kept, so that the rows of each step are known."""
    command = [sys.executable, "-c", "from tpru_verl.cli import main; main()", "train", *arguments]
    return subprocess.Popen(command, env={**os.environ, "TPRU_MOST_ANSWERS": "1000000"})


def kill(arguments: list[str], run: Path, victim: str, rng: random.Random, *, in_save: bool) -> list[str]:
    """Start, kill once a step was done, and wait for the end; the cells of the table."""
    done = len(logged(run))
    process = start(arguments)
    ready = wait(process, lambda: len(logged(run)) > done, 0.2)
    if ready and in_save:
        saved = set((run / "checkpoints").glob("global_step_*"))
        ready = wait(process, lambda: not saved >= set((run / "checkpoints").glob("global_step_*")), 0.005)
    elif ready:
        time.sleep(rng.uniform(0, 3))
    found = victims(process.pid, VICTIMS[victim]) if ready else []
    if not found:
        process.terminate()
        return [str(len(logged(run))), "", f"found no {victim} to kill", f"exit code {process.wait()}", ""]
    found[0].kill()
    killed = time.monotonic()
    wait(process, lambda: False, 0.05)  # for its end
    seconds = f"{time.monotonic() - killed:.1f} (exit code {process.poll()})"
    if process.poll() is None:
        process.kill()
        seconds = f"none in {PATIENCE}"
    step = str(len(logged(run)))
    return [step, "yes" if in_save else "no", seconds, cause(run, found[0].pid), tracker(run)]


def wait(process: subprocess.Popen[bytes], condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true while the process ran; it is looked at every so many seconds."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(seconds)
    return False


def victims(pid: int, pattern: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            # The guard has the driver's command line behind its own.
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if re.search(pattern, line) and "launch.guard" not in line:
            found.append(process)
    return found


def cause(run: Path, pid: int) -> str:
    from tpru_verl.launch.first_error import first_error

    said = first_error(run / "train.log")
    return f"{'the process' if str(pid) in said else 'not the process'}: {said[:100]}"


def tracker(run: Path) -> str:
    file = run / "checkpoints" / TRACKER
    if not file.is_file():
        return "none yet"
    step = file.read_text().strip()
    good = step.isdigit() and is_whole(run / f"checkpoints/global_step_{step}")
    return f"step {step}, {'whole' if good else 'NOT WHOLE'}"


def metrics(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def logged(run: Path) -> list[int]:
    return [line["step"] for line in metrics(run)]


def row_ids(run: Path, step: int) -> list[str]:
    """Rows of a step; the dump sorts its answers by uids that are drawn anew in each run."""
    lines = (run / f"rollouts/{step}.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["row_id"] for line in lines)


def equal(one: Path, other: Path) -> int:
    pairs = zip(metrics(one), metrics(other), strict=False)
    return sum(a["data"]["critic/score/mean"] == b["data"]["critic/score/mean"] for a, b in pairs)


if __name__ == "__main__":
    main()
