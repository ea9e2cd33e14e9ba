"""`tpru train`: how a run is watched, and how it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tpru_verl import trainers
from tpru_verl.launch import run as train
from tpru_verl.launch.plan import Plan
from tpru_verl.launch.settings import Settings
from tpru_verl.launch.stacks import dump_stacks

TRAINER = trainers.Trainer(trainers.VERL, "0.9.1", Path("verl"))


def planned(code: str, **environment: str) -> Plan:
    return Plan(TRAINER, Settings(trainers.VERL, {}), [sys.executable, "-c", code], environment)


class TestRun:
    def test_output_environment_and_exit_code_are_passed_on(
        self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        log = tmp_path / "new" / "run.log"
        plan = planned("import os, sys; print(os.environ['X']); sys.exit(7)", X="five")
        assert train.run(plan, log) == 7
        out, err = capfdbinary.readouterr()
        assert out == log.read_bytes() == b"five\n"
        assert err.decode() == f"tpru: five\ntpru: the whole log: {log}\n"

    def test_a_run_that_ends_well_says_nothing_more(
        self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        assert train.run(planned("print('done')"), tmp_path / "run.log") == 0
        assert capfdbinary.readouterr().err == b""

    def test_a_run_ended_by_a_signal_has_a_shells_exit_code(self, tmp_path: Path) -> None:
        assert train.run(planned("import os; os.kill(os.getpid(), 9)"), tmp_path / "run.log") == 137

    def test_signals_reach_the_run_once(self, tmp_path: Path) -> None:
        code = (
            "import signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), sys.exit(3)))\n"
            "print('ready', flush=True); time.sleep(60)"
        )
        log = tmp_path / "run.log"

        def ask() -> None:
            while not (log.exists() and b"ready" in log.read_bytes()):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=ask).start()
        before = signal.getsignal(signal.SIGTERM)
        assert train.run(planned(code), log) == 3
        assert log.read_text().count("asked") == 1
        assert signal.getsignal(signal.SIGTERM) is before

    def test_what_outlives_the_driver_is_ended(self, tmp_path: Path) -> None:
        child = "import time; time.sleep(60)"
        code = (
            "import subprocess, sys, time\n"
            f"child = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(3)"
        )
        train.run(planned(code), tmp_path / "run.log")
        pid = int((tmp_path / "run.log").read_text())
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    def test_a_silent_run_is_ended_with_its_stacks(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        code = "import time\ndef waits():\n    time.sleep(60)\nprint('up', flush=True)\nwaits()"
        assert train.run(planned(code), tmp_path / "run.log", stall_timeout=2) == 128 + signal.SIGTERM
        err = capfd.readouterr().err
        assert "s (--stall-timeout): the run was ended; stacks of 1 processes are in" in err
        assert "waits" in (tmp_path / "run.stacks.txt").read_text()

    def test_a_run_that_only_says_that_it_waits_is_ended_too(self, tmp_path: Path) -> None:
        code = (
            "import time\nfor i in range(600):\n"
            "    print(f'{i} s: running: 3, finished: 4, failure: 0', flush=True); time.sleep(0.1)"
        )
        started = time.monotonic()
        assert train.run(planned(code), tmp_path / "run.log", stall_timeout=2) == 128 + signal.SIGTERM
        assert time.monotonic() - started < 30

    def test_a_run_whose_steps_end_goes_on(self, tmp_path: Path) -> None:
        code = (
            "import time\nfor i in range(8):\n    print(f'step:{i} - loss:0.5', flush=True); time.sleep(0.6)"
        )
        assert train.run(planned(code), tmp_path / "run.log", stall_timeout=2) == 0

    def test_without_py_spy_that_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda *_, **__: None)
        said = dump_stacks(os.getpid(), tmp_path / "stacks.txt")
        assert said == "no stacks: found no py-spy, expected it on PATH (pip install py-spy)"


def test_ctrl_c_on_the_command_line_ends_all_of_it(tmp_path: Path) -> None:
    """As a terminal sends it: to the whole group, of which the run is no part."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom tpru_verl.launch import run as train\n"
        "from tests_plan import plan\nsys.exit(train.run(plan, Path('run.log')))"
    )
    code = "import time; print('up', flush=True); time.sleep(60)"
    (tmp_path / "tests_plan.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom tpru_verl.trainers import Trainer\n"
        "from tpru_verl.launch.plan import Plan\nfrom tpru_verl.launch.settings import Settings\n"
        f"command = [sys.executable, '-c', {code!r}]\n"
        "plan = Plan(Trainer('veRL', '1', Path()), Settings('veRL', {}), command, {})\n"
    )
    root = str(Path(train.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(tmp_path)])}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, start_new_session=True
    )
    log = tmp_path / "run.log"
    while not (log.exists() and b"up" in log.read_bytes()):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) != 0
    assert "KeyboardInterrupt" in log.read_text()
