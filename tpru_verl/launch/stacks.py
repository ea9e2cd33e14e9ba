"""The Python stacks of a run's processes, written by py-spy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

# Processes of Ray that do no work of the run.
_SERVICES = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


def dump_stacks(pid: int, out: Path) -> str:
    """Write to `out` the stacks of the program that process `pid` guards, and of the workers below it.

    Returns one sentence that says what was written, or why nothing was. Raises nothing of py-spy.
    """
    import psutil

    tool = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if tool is None:
        return "no stacks: found no py-spy, expected it on PATH (pip install py-spy)"
    dumped = []
    root = psutil.Process(pid)
    programs = {child.pid for child in root.children()}
    for process in root.children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile, or is another user's
            title = " ".join(filter(None, process.cmdline())) or process.name()
            worker = title.startswith(("ray::", "VLLM")) and not title.startswith(_SERVICES)
            if worker or process.pid in programs:
                state = process.status()
                dumped.append(f"== {title[:200]} (pid {process.pid}, {state})\n{_stack(tool, process.pid)}\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(dumped), encoding="utf-8")
    return f"stacks of {len(dumped)} processes are in {out}"


def _stack(tool: str, pid: int) -> str:
    # Without pausing it: a process that is stopped already would never answer.
    command = [tool, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "py-spy: no answer in 20 s"
    return done.stdout if done.returncode == 0 else (done.stderr.strip() or "py-spy said nothing")
