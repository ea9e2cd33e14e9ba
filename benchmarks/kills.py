"""Kills the processes of a run with `kill -9`, one after another; the run goes on after each.

    python benchmarks/kills.py --out outputs/kills --kills 20

The run is `tpru train tpru_tiny_cpu` on rows of the demo, on this machine's CPU, and saves at each step. A
start lasts one to two minutes on two cores. The first kills are followed by `tpru train --resume`, the
others fall on `tpru train --restarts 4`, five on each. After each kill the script looks how soon `tpru train`
noticed it, which cause it names, whether the checkpoint that the tracker names is whole, and what is left. At
the end, each step must have been trained on the same rows as in a run that nobody kills. The same command
goes on where it was stopped itself.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from measure import markdown, parser

from tpru_verl.checkpoints import is_whole
from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.files import write_json
from tpru_verl.launch.resume import TRACKER

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
ROWS = 160  # an epoch of ten steps, so that the run is resumed in the middle of several
SMALL = ("trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=1")
IN_A_SAVE = (*range(3, 100, 3), 13)  # 13 is the second one of the worker that writes
STEP, SAVE = 4.0, 0.06  # seconds that a step and the save in it take on two cores
PATIENCE = 600  # seconds for a start, and for the end after a kill
SHARED = Path("/dev/shm")
SAID = Path(tempfile.gettempdir()) / f"kills-{os.getpid()}.txt"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("outputs/kills"), help="a folder of its own")
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--steps", type=int, help="of the whole run; default: four more than kills")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    steps = given.steps or given.kills + 4
    rows, whole, run, file = (
        given.out / name for name in ("rows.parquet", "uninterrupted", "killed", "kills.json")
    )
    if not rows.exists():
        given.out.mkdir(parents=True)
        write_parquet(make_rows(ROWS, seed=1), rows)
    new = ["tpru_tiny_cpu", f"data.train_files={rows}", f"data.val_files={rows}", *SMALL]
    new += [f"trainer.total_training_steps={steps}"]
    if not logged(whole) and (code := start([*new, "--out", str(whole)]).wait()):
        sys.exit(f"the run that nobody kills ended with exit code {code}: {whole}/train.log")
    table: list[dict[str, str]] = json.loads(file.read_text()) if file.exists() else []
    rng = random.Random(given.seed)
    order = [*rng.sample(list(VICTIMS), len(VICTIMS)) * given.kills][: given.kills]
    alone = given.kills // 5  # followed by --resume
    process = None
    for number, victim in list(enumerate(order, start=1))[len(table) :]:
        began = starts(run)
        if process is None or process.poll() is not None:
            began += 1
            again = ["--resume", str(run)] if (run / "run.json").exists() else [*new, "--out", str(run)]
            process = start([*again, "--restarts", "4"] if number > alone else again)
        row = kill(process, run, victim, number, began)
        table.append({"kill": str(number), "of": victim, **row})
        write_json(file, table)
        print(markdown([table[-1].keys(), table[-1].values()]), flush=True)
    if process is None or process.wait():
        process = start(["--resume", str(run)])
    report(table, run, whole, steps, process.wait())


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """All answers are kept, so that the rows of each step are known. What it says of its end goes to SAID."""
    command = [sys.executable, "-c", "from tpru_verl.cli import main; main()", "train", *arguments]
    with SAID.open("wb") as said:
        return subprocess.Popen(command, env={**os.environ, "TPRU_MOST_ANSWERS": "1000000"}, stderr=said)


def kill(process: subprocess.Popen[bytes], run: Path, victim: str, number: int, began: int) -> dict[str, str]:
    """Kill once a step was done, and wait until it is noticed; the cells of the table.

    Those of IN_A_SAVE fall into a save, the others at any moment of a step. `began`: starts with this one.
    """
    rng, in_save, shared = random.Random(number), number in IN_A_SAVE, in_shared_memory()
    wait(process, lambda: starts(run) == began, 0.2)
    ready = wait(process, lambda: has_logged(run), 0.2)
    found = victims(process.pid, VICTIMS[victim]) if ready else []
    if not found:
        process.terminate()
        sys.exit(f"found no {victim} to kill; exit code {process.wait()}: {run}/train.log")
    others = psutil.Process(process.pid).children(recursive=True)
    if in_save:
        saved = set(checkpoints(run))
        wait(process, lambda: not saved >= set(checkpoints(run)), 0.002)
        time.sleep(rng.uniform(0, SAVE))
    else:
        time.sleep(rng.uniform(0, STEP))
    half, said = unfinished(run), len(SAID.read_bytes())
    found[0].kill()
    killed, told = time.monotonic(), tracker(run)
    wait(process, lambda: starts(run) > began, 0.05)  # for its end, or its next start
    seconds = time.monotonic() - killed
    code = process.poll()
    causes = re.findall(r"^tpru: (.*)", SAID.read_bytes()[said:].decode(errors="replace"), re.MULTILINE)
    left = [other for other in others if other.is_running() and other.status() != psutil.STATUS_ZOMBIE]
    return {
        "after step": str(logged(run)[-1]),
        "in a save": "yes" if half else "no",
        "then": "--resume" if starts(run) == began else "--restarts",
        "seconds": f"{seconds:.1f}",
        "exit code": "none" if code is None else str(code),
        "tracker": f"{told}, then {tracker(run)}",
        "left": f"{len(left)} processes, {in_shared_memory() - shared:.1f} MB",
        "pid": str(found[0].pid),
        "cause": causes[0] if causes else "none",
    }


def has_logged(run: Path) -> bool:
    """Whether this start has logged a step."""
    file = run / "metrics.jsonl"
    return file.exists() and file.stat().st_mtime > (run / "run.json").stat().st_mtime


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


def starts(run: Path) -> int:
    file = run / "run.json"
    return len(json.loads(file.read_text())["times"]) if file.exists() else 0


def checkpoints(run: Path) -> list[Path]:
    return [*(run / "checkpoints").glob("global_step_*")]


def unfinished(run: Path) -> bool:
    """Whether there is a checkpoint that is newer than the one that the tracker names."""
    steps = [int(path.name.removeprefix("global_step_")) for path in checkpoints(run)]
    file = run / "checkpoints" / TRACKER
    return max(steps, default=0) > (int(file.read_text()) if file.exists() else 0)


def tracker(run: Path) -> str:
    file = run / "checkpoints" / TRACKER
    if not file.is_file():
        return "none yet"
    step = file.read_text().strip()
    good = step.isdigit() and is_whole(run / f"checkpoints/global_step_{step}")
    return f"{step} {'whole' if good else 'NOT WHOLE'}"


def in_shared_memory() -> float:
    """Megabytes of Python's shared memory, as far as it was written to."""
    total = 0
    for file in SHARED.glob("psm_*"):
        try:
            total += file.stat().st_blocks * 512
        except OSError:
            continue
    return total / 1e6


def metrics(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def logged(run: Path) -> list[int]:
    return [line["step"] for line in metrics(run)]


def row_ids(run: Path, step: int) -> list[str] | None:
    """Rows of a step; the dump sorts its answers by uids that are drawn anew in each run."""
    file = run / f"rollouts/{step}.jsonl"
    return (
        sorted(json.loads(line)["row_id"] for line in file.read_text().splitlines())
        if file.exists()
        else None
    )


def report(table: list[dict[str, str]], run: Path, whole: Path, steps: int, code: int) -> None:
    title = f"{len(table)} kills of one run of {steps} steps"
    print(markdown([table[0].keys(), *(row.values() for row in table)], title))
    print(f"\nexit code of the last start: {code}")
    without = [step for step in range(1, steps + 1) if row_ids(run, step) is None]
    print(f"steps that were saved, and whose run died before they were logged: {without or 'none'}")
    twice = [step for step in logged(run) if logged(run).count(step) > 1]
    print(f"steps logged twice: {twice or 'none'}")
    other = [step for step in range(1, steps + 1) if row_ids(run, step) not in (None, row_ids(whole, step))]
    print(f"steps on other rows than in the run that nobody killed: {other or 'none'}")
    ones, others = (
        {line["step"]: line["data"]["critic/score/mean"] for line in metrics(r)} for r in (run, whole)
    )
    print(
        f"rewards that are equal in both: {sum(ones.get(step) == others[step] for step in others)} of {steps}"
    )


if __name__ == "__main__":
    main()
