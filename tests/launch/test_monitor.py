"""What a person sees of a run while it goes: from the metrics and answers in its folder."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from tpru_verl.launch.monitor import Monitor
from tpru_verl.launch.settings import Settings
from tpru_verl.runs.alarms import Watch

QUESTION = "Reorder the frames. Frame 1: Frame 2: Frame 3: Frame 4: Options: A. 2134 B. 1324 C. 2314 D. 4123"


def add(place: Path, step: int, *, reward: float = 0.5, right: int | None = None, **more: float) -> None:
    """A step as the trainer logs it, with four answers to one row, of which `right` are right."""
    if right is not None:
        (place / "rollouts").mkdir(exist_ok=True)
        answers = [
            {"input": QUESTION, "output": f"<answer>{'A' if i < right else 'B'}</answer>", "gts": "A"}
            for i in range(4)
        ]
        lines = (json.dumps({**answer, "score": 0.5, "uid": f"u_{i}_0"}) for i, answer in enumerate(answers))
        (place / f"rollouts/{step}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    data = {"critic/score/mean": reward, "critic/score/max": reward, "timing_s/step": 2.0, **more}
    with (place / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "data": data}) + "\n")


def monitor(place: Path, resumed_at: int = 0, stop_on: Sequence[str] = ()) -> Monitor:
    return Monitor(
        place,
        Settings("veRL", {"data": {"max_response_length": 32}}),
        total=10,
        resumed_at=resumed_at,
        stop_on=stop_on,
    )


def test_the_line_has_step_reward_seconds_time_left_and_accuracy_of_each_task(tmp_path: Path) -> None:
    shown = monitor(tmp_path)
    assert shown.line().startswith("starting Ray")
    add(tmp_path, 1, reward=0.25, right=1)
    shown()
    add(tmp_path, 2, reward=0.75, right=2, **{"timing_s/testing": 4.0})
    shown()
    assert shown.line() == (
        "step 2 of 10 · reward 0.500 · 4.0 s a step · 32 s left · temporal reordering 37.5 %"
    )


def test_a_run_that_is_ended_shows_no_progress_any_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = monitor(tmp_path)
    add(tmp_path, 1)
    shown()
    shown.ending("ending without saving")
    assert shown.line() == "ending: 0 s"
    shown()
    shown()
    assert capsys.readouterr().err == "ending without saving\n"


def test_an_unfinished_line_and_missing_answers_are_no_trouble(tmp_path: Path) -> None:
    shown = monitor(tmp_path)
    add(tmp_path, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "da')
    shown()
    assert shown.line().startswith("step 1 of 10 · reward 0.500 · 2.0 s a step")


def test_a_continued_run_counts_its_own_steps_and_tells_old_alarms_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in range(1, 9):
        add(tmp_path, step, reward=0.0)
    shown = monitor(tmp_path, resumed_at=6)  # steps 7 and 8 were not saved
    assert shown.line().startswith("starting Ray")
    kept = "".join((tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)[:6])
    (tmp_path / "new").write_text(kept)
    (tmp_path / "new").replace(tmp_path / "metrics.jsonl")  # as `plugin.records` does
    shown()
    assert shown.line().startswith("starting Ray")
    add(tmp_path, 7, reward=0.5)
    assert shown() is None
    assert "alarm" not in capsys.readouterr().err
    assert shown.line().startswith("step 7 of 10 · reward 0.500 · ")
    assert shown.summary(0)["step"] == 7


def test_a_step_of_the_start_before_ends_no_continued_run(tmp_path: Path) -> None:
    """Step 7 had no gradient norm, and is trained again; its new line is longer than the old one."""
    for step in range(1, 8):
        add(tmp_path, step, right=None, **{"actor/grad_norm": math.nan if step == 7 else 1.5})
    shown = monitor(tmp_path, resumed_at=6, stop_on=["gradient-explodes"])
    kept = "".join((tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)[:6])
    (tmp_path / "new").write_text(kept)
    (tmp_path / "new").replace(tmp_path / "metrics.jsonl")
    add(tmp_path, 7, right=None, **{"actor/grad_norm": 1.4321})
    assert shown() is None
    assert not shown.summary(0)["alarms"]


def test_answers_that_the_run_keeps_elsewhere_raise_alarms(tmp_path: Path) -> None:
    place, disk = tmp_path / "run", tmp_path / "disk"
    place.mkdir()
    config = {"trainer": {"rollout_data_dir": str(disk / "said")}}
    shown = Monitor(place, Settings("veRL", config), total=10, stop_on=["no-variance"])
    for step in range(1, 6):
        add(place, step, right=2)  # of which the score is one for all
    (disk / "said").parent.mkdir()
    (place / "rollouts").rename(disk / "said")
    assert str(shown()).startswith("alarm no-variance (--stop-on) at step 5")


def test_an_alarm_is_told_once_and_ends_the_run_that_asked_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, ends = monitor(tmp_path), monitor(tmp_path, stop_on=["no-reward"])
    for step in range(1, 8):
        add(tmp_path, step, reward=0.0)
        assert told() is None
    assert capsys.readouterr().err.count("alarm no-reward, step 5") == 1
    assert str(ends()).startswith("alarm no-reward (--stop-on) at step 7")
    assert ends.stopped


def test_a_step_costs_the_same_however_long_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is looked at once, also where several come between two looks, and after a resume."""
    looked: list[int] = []
    add_step = Watch.add
    monkeypatch.setattr(Watch, "add", lambda self, step: looked.append(step.number) or add_step(self, step))
    for step in range(1, 7):
        add(tmp_path, step)
    shown = monitor(tmp_path, resumed_at=4)
    kept = "".join((tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)[:4])
    (tmp_path / "new").write_text(kept)
    (tmp_path / "new").replace(tmp_path / "metrics.jsonl")
    for step in range(5, 30):
        add(tmp_path, step, right=1)
        if step % 3:
            shown()
    shown()
    assert looked == list(range(1, 30))
    assert [step.number for step in shown.history.trained] == looked
    assert shown.summary(0)["step"] == 29
