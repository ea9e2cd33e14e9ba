"""`tpru score`: dumps of veRL and EasyR1, graded again; the numbers are those that can be counted by hand."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tpru_verl import cli
from tpru_verl.grading import PRESETS
from tpru_verl.runs.rollouts import read_rollouts
from tpru_verl.score import score_rollouts, summary

QUESTION = "user\nReorder the frames. Options: A. 1 2 3 4 B. 3 1 4 2 E. None of the choices provided\n"
RIGHT, WRONG = ("<think>so</think><answer>B</answer>", "<think>so</think><answer>A</answer>")
BARE = "<answer>B</answer>"


def line(response: str, score: float, prompt: int = 0, sample: int = 0, **more: object) -> dict[str, object]:
    uid = f"abc{prompt}_{sample}_0"
    return {"input": QUESTION, "output": response, "gts": "B", "score": score, "step": 1, "uid": uid, **more}


def write(path: Path, lines: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_verls_dump_is_counted_by_task_and_preset(tmp_path: Path) -> None:
    folder = tmp_path / "rollouts"
    folder.mkdir()
    write(folder / "2.jsonl", [line(RIGHT, 1.0, 2, 0), line(RIGHT, 1.0, 2, 1)])
    write(folder / "10.jsonl", [line(WRONG, 0.125, 1, 0), line(BARE, 0.875, 1, 1)])
    numbers = summary(score_rollouts(folder))
    assert list(numbers) == ["temporal_reordering", "all"]
    found = numbers["all"]
    assert found["n"] == 4
    assert found["accuracy"] == 0.75
    assert found["format"] == 0.75
    assert found["score_tpru"] == found["recorded"] == (1 + 1 + 0.125 + 0.875) / 4
    assert found["score_paper"] == pytest.approx((0.92 + 0.92 + 0.02 + 0.9) / 4)
    assert found["without_signal_tpru"] == 0.5  # the group of two right answers teaches nothing
    assert [r.response for r in read_rollouts(folder)] == [RIGHT, RIGHT, WRONG, BARE]  # by step, not by name


def test_the_folder_of_a_run_stands_for_its_rollouts(tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "disk", tmp_path / "run"
    for folder in (elsewhere, run):
        folder.mkdir()
    write(elsewhere / "1.jsonl", [line(RIGHT, 1.0), line(WRONG, 0.125, sample=1)])
    (run / "metrics.jsonl").write_text('{"step": 1, "data": {"critic/score/mean": 0.5}}\n')
    with pytest.raises(FileNotFoundError, match="run: found a run without rollouts"):
        score_rollouts(run)
    config = {"actor_rollout_ref": {}, "trainer": {"rollout_data_dir": str(elsewhere)}}
    (run / "recipe.yaml").write_text(json.dumps(config))
    assert summary(score_rollouts(run)) == summary(score_rollouts(elsewhere))


def test_a_row_that_names_its_task_is_counted_there(tmp_path: Path) -> None:
    prompt = "Which picture is missing? <image> A. <image> B. <image>"
    lines = [
        {**line(RIGHT, 1.0, i), "input": prompt, "task": task}
        for i, task in enumerate(["previous_frame_review", "next_frame_prediction", "", None, "sorting"])
    ]
    numbers = summary(score_rollouts(write(tmp_path / "1.jsonl", lines)))
    counts = {name: found["n"] for name, found in numbers.items()}
    assert counts == {"next_frame_prediction": 1, "not recognised": 3, "previous_frame_review": 1, "all": 5}


def test_easyr1s_log(tmp_path: Path) -> None:
    path = tmp_path / "generations.log"
    outputs = [(RIGHT, 1.0), ("<think>two\nlines</think>\n<answer>A</answer>", 0.125)]
    entry = "[prompt] {}\n[output] {}\n[ground_truth] B\n[score] {}\n\n"
    path.write_text("".join(entry.format(QUESTION.strip(), *output) for output in outputs))
    first, second = read_rollouts(path)
    assert (first.response, first.answer, first.recorded) == (RIGHT, "B", 1.0)
    assert second.response == outputs[1][0]
    assert first.group == second.group
    assert summary(score_rollouts(path))["all"]["without_signal_tpru"] == 0.0


def test_any_jsonl_with_answers(tmp_path: Path) -> None:
    rows = [{"response": BARE, "answer": "B"}, {"completion": WRONG, "ground_truth": "B"}]
    numbers = summary(score_rollouts(write(tmp_path / "a.jsonl", rows)))
    assert list(numbers) == ["not recognised", "all"]
    assert numbers["all"]["accuracy"] == 0.5
    assert numbers["all"]["recorded"] is None
    assert numbers["all"]["without_signal_tpru"] is None


def test_right_answers_are_read_and_a_prompt_tells_that_the_reasoning_is_open(tmp_path: Path) -> None:
    opened = f"{QUESTION}assistant\n<think>\n"
    rows = [
        {**line(RIGHT.removeprefix("<think>"), 1.0), "input": opened, "gts": "<answer> B </answer>"},
        {**line(RIGHT, 1.0), "gts": "(B)"},
    ]
    assert summary(score_rollouts(write(tmp_path / "1.jsonl", rows)))["all"]["score_tpru"] == 1.0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "found 0 rollouts"),
        ("a.jsonl", "{", r"a\.jsonl line 1: not readable as json"),
        ("a.jsonl", "\n[1]\n", r"a\.jsonl line 2: found list, expected an object"),
        (
            "a.jsonl",
            '{"output": "x"}',
            r"line 1: found keys output; expected text in one of gts",
        ),
        ("a.jsonl", '{"gts": "B"}', r"line 1: found keys gts; expected text in one of output, response"),
        (
            "a.jsonl",
            json.dumps(line(RIGHT, 1.0)) + "\n" + json.dumps({**line(RIGHT, 1.0), "gts": "F"}),
            r"a\.jsonl line 2, gts: found 'F', expected one of A, B$",
        ),
        (
            "a.jsonl",
            '{"output": "B", "answer": "3"}',
            r"line 1, answer: found '3', expected a letter or an order",
        ),
        (
            "a.log",
            "[prompt] a\n[output] b\n[ground_truth] 3\n[score] 1\n",
            r"a\.log entry 1: \[ground_truth\]: found '3'",
        ),
        ("a.log", "[prompt] a\n[score] 1\n", r"a\.log: expected entries of \[prompt\]"),
        ("a.log", "[prompt] a\n[output] b\n[ground_truth] B\n[score] ?\n", r"entry 1: found \[score\] '\?'"),
    ],
)
def test_what_is_no_dump_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        score_rollouts(tmp_path / name)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "1.jsonl", [line(RIGHT, 1.0), line(WRONG, 0.125, sample=1)])
    monkeypatch.setattr(sys, "argv", ["tpru", "score", str(path), "--json", str(tmp_path / "scores.json")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"score: {preset}" in out for preset in PRESETS)
    assert json.loads((tmp_path / "scores.json").read_text())["all"]["n"] == 2
    monkeypatch.setattr(sys, "argv", ["tpru", "score", str(tmp_path / "missing")])
    with pytest.raises(SystemExit, match="found no rollouts"):
        cli.main()
