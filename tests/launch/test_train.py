"""How a run is watched, how it ends, and what is said of it."""

import json
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
from tpru_verl.launch import run, watch
from tpru_verl.launch.plan import Plan
from tpru_verl.launch.settings import Settings
from tpru_verl.launch.stacks import dump_stacks

TRAINER = trainers.Trainer(trainers.VERL, "0.9.1", Path("verl"))


def planned(code: str, steps: int = 0, **environment: str) -> Plan:
    settings = Settings(
        trainers.VERL,
        {"trainer": {"total_training_steps": steps, "logger": ["file"]}, "data": {"train_files": "a/hub-id"}},
    )
    return Plan(TRAINER, settings, [sys.executable, "-c", code], environment)


def trains(steps: int, seconds: float = 0.0, *, first: int = 1) -> str:
    """A program that logs steps as veRL does, and can be asked to end as the plugin's trainer can."""
    return f"""
import json, os, pathlib, sys, time
stop = pathlib.Path(os.environ["TPRU_STOP_FILE"])
stop.touch()
with open("metrics.jsonl", "a", buffering=1) as log:
    for step in range({first}, {first + steps}):
        data = {{"critic/score/mean": 0.0, "critic/score/max": 0.0, "timing_s/step": 1.5}}
        if step == {first}:
            data["val-core/tpru/temporal_reordering/acc/mean@1"] = 0.25
        if step == {first + steps - 1}:
            data["val-core/tpru/temporal_reordering/acc/mean@1"] = 0.75
        print(json.dumps({{"step": step, "data": data}}), file=log)
        print(f"step:{{step}} - loss:0.5", flush=True)
        time.sleep({seconds})
        if stop.read_text():
            sys.exit("RuntimeError: asked to end")
"""


# A trainer whose main function has failed, and which Ray keeps from ending, as after the death of a raylet.
FAILED = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("Error executing job with overrides: []", file=sys.stderr, flush=True)
print("Traceback (most recent call last):\\nRuntimeError: the cause", file=sys.stderr, flush=True)
time.sleep(60)
"""


class TestRun:
    def test_a_trainer_that_has_failed_and_does_not_end_is_ended(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "FAILED", 0.5)
        started = time.monotonic()
        assert run.run(planned(FAILED), tmp_path) == 1
        assert time.monotonic() - started < 10
        assert "tpru: RuntimeError: the cause" in capfd.readouterr().err

    def test_a_trainer_that_is_killed_is_named(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        code = "import os, signal; print('step:1', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
        assert run.run(planned(code), tmp_path) == 128 + signal.SIGKILL
        assert "tpru: veRL was ended by SIGKILL: killed, or out of memory" in capfd.readouterr().err

    def test_output_is_kept_and_shown_on_demand_and_the_exit_code_is_the_trainers(
        self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        plan = planned("import os, sys; print(os.environ['X']); sys.exit(7)", X="five")
        assert run.run(plan, tmp_path, verbose=True) == 7
        out, err = capfdbinary.readouterr()
        assert out == (tmp_path / "train.log").read_bytes() == b"five\n"
        assert err.decode().splitlines() == [
            "tpru: five",
            "tpru: there is no checkpoint",
            f"tpru: the whole log: {tmp_path / 'train.log'}",
        ]
        assert run.run(plan, tmp_path) == 7
        assert b"five" not in capfdbinary.readouterr().out

    def test_a_run_that_ends_well_says_what_it_did_and_what_to_do_next(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        plan = planned(trains(12), 12)
        assert run.run(plan, tmp_path, commands=["report"]) == 0
        out, err = capfd.readouterr()
        assert "step:" not in out
        assert "Step 12 of 12" in out
        assert f"tpru report {tmp_path}\n" in out
        assert "tpru export" not in out
        assert "alarm no-reward, step " in err
        row = next(line for line in out.splitlines() if "temporal reordering" in line)
        assert "25.0 %" in row
        assert "75.0 %" in row
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert (summary["exit_code"], summary["step"], summary["seconds"]["step"]) == (0, 12, 18.0)
        assert summary["validation"][-1] == {"step": 12, "accuracy": {"temporal_reordering": 0.75}}

    def test_in_a_pipe_a_line_every_ten_steps(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        run.run(planned(trains(14, 0.25), 14), tmp_path)
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step ")]
        assert 1 <= len(lines) <= 2
        assert "of 14 · reward 0.000 · 1.5 s a step" in lines[0]

    def test_an_alarm_of_stop_on_ends_the_run(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run.run(planned(trains(100, 0.3), 100), tmp_path, stop_on=["no-reward"]) == run.ALARM
        assert "tpru: alarm no-reward (--stop-on) at step " in capfd.readouterr().err

    def test_a_run_ended_by_a_signal_has_a_shells_exit_code(self, tmp_path: Path) -> None:
        assert run.run(planned("import os; os.kill(os.getpid(), 9)"), tmp_path) == 137

    def test_sigterm_asks_the_trainer_to_save_and_is_no_failure_of_it(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        before = signal.getsignal(signal.SIGTERM)
        when_it_says(tmp_path / "train.log", b"step:2", signal.SIGTERM)
        assert run.run(planned(trains(100, 0.3), 100), tmp_path) == 143
        assert "RuntimeError: asked to end" in (tmp_path / "train.log").read_text()
        err = capfd.readouterr().err
        assert "tpru: ended by SIGTERM; there is no checkpoint" in err
        assert "asked to end" not in err
        assert signal.getsignal(signal.SIGTERM) is before
        assert not (tmp_path / ".stop").exists()

    def test_ctrl_c_says_at_once_what_is_saved_and_what_the_next_one_does(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        code = (
            "import signal, time\n"
            "signal.signal(signal.SIGINT, lambda *_: print('asked', flush=True))\n"
            "print('ready', flush=True); time.sleep(60)"
        )
        when_it_says(tmp_path / "train.log", b"ready", signal.SIGINT)
        again = threading.Timer(6, os.kill, (os.getpid(), signal.SIGINT))
        again.start()
        started = time.monotonic()
        assert run.run(planned(code), tmp_path) == 130
        assert time.monotonic() - started < 20  # the guard alone would wait for 30 s
        lines = capfd.readouterr().err.splitlines()
        # The second one is told, too, where the run has not ended by then.
        assert [line for line in lines if line != "ending at once"] == [
            "ending without saving; there is no checkpoint yet (the next Ctrl-C ends the run at once)",
            "tpru: ended by SIGINT; there is no checkpoint",
        ]

    def test_a_trainer_that_does_not_end_gets_sigterm_after_the_grace(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        code = (
            "import os, pathlib, time\n"
            "pathlib.Path(os.environ['TPRU_STOP_FILE']).touch()\n"
            "print('ready', flush=True); time.sleep(60)"
        )
        when_it_says(tmp_path / "train.log", b"ready", signal.SIGTERM)
        started = time.monotonic()
        assert run.run(planned(code), tmp_path, grace=2) == 143
        assert 2 < time.monotonic() - started < 30
        told = "saving, then ending, within 2 s; there is no checkpoint yet (Ctrl-C ends the run without"
        assert told in capfd.readouterr().err

    def test_a_trainer_that_cannot_be_asked_gets_sigterm_once(self, tmp_path: Path) -> None:
        code = (
            "import signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), sys.exit(3)))\n"
            "print('ready', flush=True); time.sleep(60)"
        )
        when_it_says(tmp_path / "train.log", b"ready", signal.SIGTERM)
        assert run.run(planned(code), tmp_path) == 143
        assert (tmp_path / "train.log").read_text().count("asked") == 1

    def test_what_outlives_the_driver_is_ended(self, tmp_path: Path) -> None:
        child = "import time; time.sleep(60)"
        code = (
            "import subprocess, sys, time\n"
            f"child = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(3)"
        )
        run.run(planned(code), tmp_path)
        pid = int((tmp_path / "train.log").read_text())
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    def test_a_silent_run_is_ended_with_its_stacks(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        code = "import time\ndef waits():\n    time.sleep(60)\nprint('up', flush=True)\nwaits()"
        assert run.run(planned(code), tmp_path, stall_timeout=2) == run.STALLED
        err = capfd.readouterr().err
        assert "s (--stall-timeout): the run was ended; stacks of 1 processes are in" in err
        (stacks,) = (tmp_path / "stacks").iterdir()
        assert "waits" in stacks.read_text()

    def test_a_run_that_only_says_that_it_waits_is_ended_too(self, tmp_path: Path) -> None:
        code = (
            "import time\nfor i in range(600):\n"
            "    print(f'{i} s: running: 3, finished: 4, failure: 0', flush=True); time.sleep(0.1)"
        )
        started = time.monotonic()
        assert run.run(planned(code), tmp_path, stall_timeout=2) == run.STALLED
        assert time.monotonic() - started < 30

    def test_a_run_whose_steps_end_goes_on(self, tmp_path: Path) -> None:
        code = (
            "import time\nfor i in range(8):\n    print(f'step:{i} - loss:0.5', flush=True); time.sleep(0.6)"
        )
        assert run.run(planned(code), tmp_path, stall_timeout=2) == 0

    def test_without_py_spy_that_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda *_, **__: None)
        said = dump_stacks(os.getpid(), tmp_path / "stacks.txt")
        assert said == "no stacks: found no py-spy, expected it on PATH (pip install py-spy)"


def when_it_says(log: Path, text: bytes, number: signal.Signals) -> None:
    """Send this process a signal, once the log has the text."""

    def ask() -> None:
        while not (log.exists() and text in log.read_bytes()):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=ask).start()


def test_ctrl_c_on_the_command_line_ends_all_of_it(tmp_path: Path) -> None:
    """As a terminal sends it: to the whole group, of which the run is no part."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom tpru_verl.launch import run\n"
        "from tests_plan import plan\nsys.exit(run.run(plan, Path('.')))"
    )
    code = "import time; print('up', flush=True); time.sleep(60)"
    (tmp_path / "tests_plan.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom tpru_verl.trainers import Trainer\n"
        "from tpru_verl.launch.plan import Plan\nfrom tpru_verl.launch.settings import Settings\n"
        f"command = [sys.executable, '-c', {code!r}]\n"
        "settings = Settings('veRL', {'data': {'train_files': 'a/hub-id'}})\n"
        "plan = Plan(Trainer('veRL', '1', Path()), settings, command, {})\n"
    )
    root = str(Path(watch.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(tmp_path)])}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, start_new_session=True
    )
    log = tmp_path / "train.log"
    while not (log.exists() and b"up" in log.read_bytes()):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) != 0
    assert "KeyboardInterrupt" in log.read_text()
