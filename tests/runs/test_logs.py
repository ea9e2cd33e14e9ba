"""A run's metrics: veRL's and EasyR1's files, as whole and as broken as runs leave them."""

import json
import math
from pathlib import Path

import pytest
from support.runs import dump, log_with_verl, metrics_line

from tpru_verl.files import write_text
from tpru_verl.runs import commands
from tpru_verl.runs.history import HistoryReader
from tpru_verl.runs.logs import MetricsReader, RunFiles, Step, accuracies, clipped, validated


def test_verls_own_logger(tmp_path: Path) -> None:
    before = {"val-core/tpru/temporal_reordering/acc/mean@1": 0.25}
    after = {"critic/score/mean": 0.5, "training/rollout_actor_probs_pearson_corr": math.nan}
    reader = MetricsReader(log_with_verl(tmp_path / "metrics.jsonl", [(0, before), (1, after)]))
    first, second = reader.update()
    assert (first.number, first.data, first.trained) == (0, before, False)
    assert (second.get("reward"), second.trained) == (0.5, True)
    assert math.isnan(second.get("agreement") or 0)
    assert second.get("entropy") is None
    assert not reader.notes


def test_easyr1s_own_logger(tmp_path: Path) -> None:
    """EasyR1 nests the names: read in its `FileLogger` of 2026."""
    line = {
        "step": 3,
        "critic": {"score": {"mean": 0.4}},
        "actor": {"grad_norm": 2.0},
        "val": {"reward_score": 1},
    }
    (tmp_path / "experiment_log.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "generations.log").write_text(
        "[prompt] p\n[output] <answer>A</answer>\n[ground_truth] A\n[score] 1.0\n\n"
    )
    (tmp_path / "experiment_config.json").write_text('{"data": {"max_response_length": 64}}')
    reader = HistoryReader(RunFiles.find(tmp_path))
    history = reader.update()
    assert history.steps[0].get("reward") == 0.4
    assert history.steps[0].get("gradient norm") == 2.0
    assert history.response_limit == 64
    assert [answer.parsed for answer in reader.validation[3]] == ["A"]


def test_a_line_that_a_kill_cut_off_is_left_out_and_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = metrics_line(2)
    path.write_text(metrics_line(1) + whole[:40])
    reader = MetricsReader(path)
    assert [step.number for step in reader.update()] == [1]
    assert ["the last line is cut off" in note for note in reader.notes] == [True]
    with path.open("a") as file:
        file.write(whole[40:])
    assert [step.number for step in reader.update()] == [1, 2]
    assert not reader.notes


def test_a_resumed_run_goes_back_and_the_later_steps_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = [metrics_line(n, critic__score__mean=0.1) for n in range(1, 9)]
    # Killed within a line, resumed from step 5, killed again after step 6.
    second = [metrics_line(n, critic__score__mean=0.9) for n in (6,)]
    path.write_text("".join(first) + '{"step": 9, "da\n' + "".join(second))
    reader = MetricsReader(path)
    steps = reader.update()
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.get("reward") for step in steps] == [0.1] * 5 + [0.9]
    assert reader.notes == [
        "metrics.jsonl, line 9: unreadable, left out",
        "metrics.jsonl: steps 6 to 8 were trained again by a resumed run; the later lines count",
    ]


def test_unreadable_lines_are_one_note(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(metrics_line(1) + "{\n" * 9)
    reader = MetricsReader(path)
    reader.update()
    assert reader.notes == ["metrics.jsonl, lines 2, 3, 4, 5, 6 and 4 more: unreadable, left out"]


def test_the_terminal_says_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(metrics_line(1) + "{\n" + metrics_line(2)[:30])
    monkeypatch.setattr(commands, "write_report", lambda *_, **__: None)
    commands.report([path], None, text=False, watch=False, rollouts=None, validation=None)
    said = capsys.readouterr().err
    assert "metrics.jsonl, line 2: unreadable, left out" in said
    assert "the last line is cut off" in said


def test_a_validation_of_its_own_line_joins_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(metrics_line(1) + json.dumps({"step": 1, "data": {"val-core/x/acc/mean@1": 1.0}}) + "\n")
    reader = MetricsReader(path)
    (step,) = reader.update()
    assert step.get("reward") == 0.5
    assert step.data["val-core/x/acc/mean@1"] == 1.0
    assert not reader.notes


def test_a_file_made_anew_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(metrics_line(n) for n in range(1, 5)))
    reader = MetricsReader(path)
    assert len(reader.update()) == 4
    path.unlink()
    path.write_text("".join(metrics_line(n) for n in range(5, 10)))  # longer than the one before
    assert [step.number for step in reader.update()] == [5, 6, 7, 8, 9]


def test_a_file_that_a_resumed_run_put_in_its_place_is_read_anew(tmp_path: Path) -> None:
    """It begins as the one before. The line that is written anew may be the longer one."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(metrics_line(n) for n in range(1, 9)) + metrics_line(9, actor__grad_norm=math.nan)
    )
    reader = MetricsReader(path)
    assert math.isnan(reader.update()[-1].get("gradient norm") or 0)
    kept = path.read_text().splitlines(keepends=True)[:8]
    write_text(path, "".join([*kept, metrics_line(9, actor__grad_norm=1.4321)]))  # as `plugin.records` does
    assert [step.number for step in reader.update()] == list(range(1, 10))
    assert reader.update()[-1].get("gradient norm") == 1.4321
    assert not reader.notes


def test_of_a_step_that_was_trained_again_only_the_later_metrics_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        metrics_line(1, actor__entropy=0.1) + json.dumps({"step": 1, "data": {"actor/lr": 1}}) + "\n"
    )
    (step,) = MetricsReader(path).update()
    assert step.data == {"actor/lr": 1}


def test_responses_become_metrics_of_their_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "data": {"critic/score/mean": 0.5}}) + "\n"
    )
    dump(tmp_path / "rollouts/1.jsonl", 1, right=1.0)
    dump(tmp_path / "rollouts/2.jsonl", 2)  # its metrics have not been written: it may be half there
    history = HistoryReader(RunFiles.find(tmp_path)).update()
    (step,) = history.steps
    assert step.get("accuracy") == step.get("commonest answer") == step.get("groups without variance") == 1.0
    assert step.get("highest reward") == 1.0


def test_a_broken_dump_is_said_and_the_others_are_shown(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(metrics_line(1) + metrics_line(2))
    for step in (1, 2):
        dump(tmp_path / f"rollouts/{step}.jsonl", step)
    text = (tmp_path / "rollouts/1.jsonl").read_text()
    (tmp_path / "rollouts/1.jsonl").write_text("{}\n" + text)
    (tmp_path / "rollouts/2.jsonl").write_text(text[:-30])  # cut off: what is whole is shown
    reader = HistoryReader(RunFiles.find(tmp_path))
    (note,) = reader.update().notes
    assert "1.jsonl line 1: found keys" in note
    assert {step: len(answers) for step, answers in reader.rollouts.items()} == {2: 15}


def test_a_run_that_has_not_begun_has_no_steps(tmp_path: Path) -> None:
    files = RunFiles("x", tmp_path / "metrics.jsonl", tmp_path / "rollouts", tmp_path / "validation")
    reader = HistoryReader(files)
    assert reader.update().steps == []
    (tmp_path / "metrics.jsonl").write_text(metrics_line(1))
    assert len(reader.update().steps) == 1


def test_a_folder_of_responses_or_a_file_of_it_stands_for_a_run(tmp_path: Path) -> None:
    dump(tmp_path / "kept/1.jsonl", 1)
    dump(tmp_path / "kept/2.jsonl", 2)
    for path in (tmp_path / "kept", tmp_path / "kept/1.jsonl"):
        files = RunFiles.find(path)
        assert (files.name, files.metrics, files.rollouts) == ("kept", None, tmp_path / "kept")
        assert [step.number for step in HistoryReader(files).update().trained] == [1, 2]


@pytest.mark.parametrize("text", ["a: [1", "\t- x: y: z", "{"])
def test_an_unreadable_recipe_is_one_line_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(metrics_line(1))
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml: .*, expected the recipe of the run") as raised:
        HistoryReader(RunFiles.find(tmp_path)).update()
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"found no metrics\.jsonl or experiment_log\.jsonl and no"):
        RunFiles.find(tmp_path)
    with pytest.raises(FileNotFoundError, match="found nothing there"):
        RunFiles.find(tmp_path / "none")


def test_each_source_of_a_validation_counts() -> None:
    """A task ends the names of our sources; those of others may end alike."""
    alike = Step(5, {"val-core/lego/val/acc/mean@1": 0.2, "val-core/gui/val/acc/mean@1": 0.8})
    assert accuracies(alike) == {"gui/val": 0.8, "lego/val": 0.2}
    assert validated(alike) == 0.5
    ours = {"val-core/tpru/next_frame_prediction/acc/mean@4": 0.2, "val-core/mine/acc/mean@4": 0.4}
    assert accuracies(Step(5, ours)) == {"mine": 0.4, "next_frame_prediction": 0.2}
    assert accuracies(Step(5, {"val/accuracy_reward": 0.3})) == {"accuracy": 0.3}


@pytest.mark.parametrize(
    ("longest", "limit", "share"), [(16.0, 32, 0.0), (32.0, 32, 0.6), (32.0, None, None)]
)
def test_the_clip_ratio_counts_only_at_the_limit(
    longest: float, limit: int | None, share: float | None
) -> None:
    """veRL 0.9.1 logs 0.6 for the longest response of a batch, however short it is (found by running it)."""
    data = {"response_length/max": longest, "response_length/clip_ratio": 0.6}
    assert clipped(Step(1, data), limit) == share
