"""Processes that work for a command end with it, however it ends, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tpru_verl.data.work import here, in_order, processes

WORK = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from tpru_verl.data.layout import result_folder
from tpru_verl.data.work import in_order
from tpru_verl.files import locked
from tpru_verl import cli
import typer

app = typer.Typer()

@app.command()
def work(out: Path) -> None:
    with locked(out), result_folder(out) as folder:
        for _ in in_order([0.01] * 4 + [60.0] * 100, time.sleep, title="x", workers=2):
            (folder / "half").write_text("half")
            print("working", flush=True)

if __name__ == "__main__":
    cli.app = app
    cli.main()
"""


@pytest.fixture
def running(tmp_path: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A command in the middle of its work, and its worker processes."""
    (tmp_path / "work.py").write_text(WORK)
    command = [sys.executable, str(tmp_path / "work.py"), str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for _ in range(4):
        assert process.stdout.readline() == "working\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    return process, children


@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_ends_all_and_cleans_up(
    running: tuple[subprocess.Popen[str], list[psutil.Process]],
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    whole_group: bool,
) -> None:
    process, children = running
    began = time.monotonic()
    os.killpg(process.pid, number) if whole_group else process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in error
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert time.monotonic() - began < 15  # the tasks under way would take a minute
    assert [path.name for path in tmp_path.iterdir()] == ["work.py"]


def test_a_kill_of_the_parent_ends_its_workers(
    running: tuple[subprocess.Popen[str], list[psutil.Process]],
) -> None:
    process, children = running
    process.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_signals_that_are_ignored_stay_so(tmp_path: Path) -> None:
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from tpru_verl import cli; "
        "cli.app = lambda: (os.kill(os.getpid(), signal.SIGHUP), print('lives'))[0]; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "lives\n")


def test_a_killed_worker_is_told_in_one_line() -> None:
    with pytest.raises(RuntimeError, match=r"a worker process was killed, .* memory .* --workers"):
        list(in_order([1, 2, 3], _kill_oneself, title="x", workers=2))


def _kill_oneself(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_end_in_the_middle_of_large_results_does_not_hang() -> None:
    code = (
        "from tpru_verl.data.work import in_order\n"
        "if __name__ == '__main__':\n"
        "    for i, _ in enumerate(in_order([3 * 10**7] * 200, bytes, title='x', workers=2)):\n"
        "        if i == 3:\n"
        "            raise SystemExit(143)\n"
    )
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
        assert done.returncode == 143


def test_results_come_in_order() -> None:
    with processes(2) as run:
        assert list(in_order([3, 1, 2], abs, title="x", run=run)) == [3, 1, 2]
        assert list(in_order([-4], abs, title="x", run=run)) == [4]
    assert list(in_order([-1, -2], abs, title="x", run=here)) == [1, 2]
