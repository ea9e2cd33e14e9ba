"""`tpru report`: whole pages, honest about what is not there, and safe whatever a model answered."""

import html
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs import dump, metrics_line

from tpru_verl import cli
from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.runs.logs import RunFiles
from tpru_verl.runs.report import RunReport, write_report
from tpru_verl.runs.shown import CHANGED

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

ATTACK = "</code><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }} \x1b[31m $x^2$"
STEPS = 12


def write_run(folder: Path, *, said: str = "", seed: int = 0) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(metrics_line(n) for n in range(1, STEPS + 1)))
    for step in range(1, STEPS + 1):
        dump(folder / f"rollouts/{step}.jsonl", step, right=0.5, said=said, seed=seed)
    return folder


def write_rows(folder: Path) -> None:
    """Rows of three scenes, and two validations of them: all wrong, then all right."""
    made = make_rows(24, seed=1)
    rows = [replace(row, problem=f"Episode {i}. {row.problem}") for i, row in enumerate(made)]
    write_parquet(rows, folder / "rows.parquet")
    recipe = {
        "actor_rollout_ref": {},
        "data": {"train_files": str(folder / "rows.parquet"), "val_files": None},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "validation").mkdir()
    for step, right in ((1, False), (STEPS, True)):
        lines: list[str] = []
        for i, row in enumerate(rows):
            said = row.answer if right else next(letter for letter in "AB" if letter != row.answer)
            prompt = f"user\n{row.problem.replace('<image>', '')}\nassistant\n"
            answer = {
                "input": prompt,
                "output": f"<answer>{said}</answer>",
                "gts": row.answer,
                "score": right,
            }
            lines.append(json.dumps(answer | {"step": step, "uid": f"{step}{i}_0_0"}) + "\n")
        (folder / f"validation/{step}.jsonl").write_text("".join(lines))


def page_of(*folders: Path) -> str:
    out = folders[0] / "report.html"
    write_report([RunReport(RunFiles.find(folder)) for folder in folders], out)
    return out.read_text()


def words_of(page: str) -> str:
    body = re.sub(r"<(script|style).*?</\1>", " ", page.partition("<body>")[2], flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_the_page_needs_nothing_beside_itself(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    page = page_of(folder)
    assert "default-src 'none'" in page
    links = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert {"reward.png", "agreement.png"} <= {file.name for file in (folder / "report-curves").iterdir()}
    assert not re.search(r"#[0-9a-f]{6}", "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL)))
    words = words_of(page)
    assert "12 training steps" in words
    assert "No alarm" in words
    assert "Best responses: 4 of 48" in words  # the last quarter: 3 steps of 16 responses to 4 prompts


def tpru(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    """The exit code of `tpru report ...`, or the text that it ends with."""
    monkeypatch.setattr(sys, "argv", ["tpru", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def test_what_a_model_answers_stays_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = page_of(write_run(tmp_path / "run $x$ <b>", said=ATTACK))
    assert page.count("<script") == 1  # our own
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "\x1b" not in page
    words = words_of(page)
    assert "<script>alert(1)</script>" in words
    assert "{{ 7 * 7 }}" in words
    assert r"\x1b[31m" in words
    assert tpru(monkeypatch, tmp_path / "run $x$ <b>", "--text") == 0
    shown = capsys.readouterr().out
    assert r"\x1b[31m" in shown
    assert "\x1b" not in shown


def test_rows_are_found_again_with_scene_and_pictures(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_rows(folder)
    report = RunReport(RunFiles.find(folder))
    validated, trained = report.grades
    assert {line.name: line.accuracy.mean for line in validated.by_task}["all"] == 1.0
    assert [line.before.mean for line in validated.by_task if line.before] == [0.0] * len(validated.by_task)
    assert sum(line.accuracy.n for line in validated.by_scene if line.name != "all") == 24
    assert not trained.by_scene  # of rows that are not in the data
    became = next(section for section in report.sections if section.title == "Became right")
    assert became.of == 24
    assert all(row.scene and row.id for row in became.rows)
    pictures = [piece.picture for row in became.rows for piece in row.row.question if piece.tagged]
    assert pictures
    assert all(pictures)
    assert [said.right for said in became.rows[0].said] == [False, True]


def test_numbers_that_no_axis_can_hold_are_not_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(metrics_line(STEPS + 1, actor__grad_norm=1e308, critic__score__mean=-1e300))
    page_of(folder)
    found = [alarm.name for alarm in RunReport(RunFiles.find(folder)).alarms]
    assert found == ["no-reward", "gradient-explodes"]


def test_relative_paths_begin_where_the_run_was_started(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_rows(folder)
    recipe = {"actor_rollout_ref": {}, "data": {"train_files": "rows.parquet", "val_files": ["rows.parquet"]}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    assert not RunReport(RunFiles.find(folder)).grades[0].by_scene
    (folder / "run.json").write_text(json.dumps({"folder": str(folder)}))
    assert RunReport(RunFiles.find(folder)).grades[0].by_scene


@pytest.mark.parametrize("named", ["", "second", "PLACE"])
def test_rows_of_one_text_are_told_apart_by_the_id_or_place_in_the_dump(tmp_path: Path, named: str) -> None:
    folder = write_run(tmp_path / "run")
    write_rows(folder)
    row = replace(make_rows(1, seed=1)[0], problem="Episode 0. Which one?", answer="A")
    write_parquet([row, replace(row, row_id="second", scene="elsewhere")], folder / "rows.parquet")
    row_id = named.replace("PLACE", f"{folder / 'rows.parquet'} row 1")
    for step in (1, STEPS):
        answer = {
            "input": "user\nEpisode 0. Which one?\n",
            "output": "A",
            "gts": "A",
            "score": 1,
            "step": step,
        }
        line = json.dumps(answer | {"uid": f"u{step}_0_0", "row_id": row_id or None})
        (folder / f"validation/{step}.jsonl").write_text(line + "\n")
    scenes = [line.name for line in RunReport(RunFiles.find(folder)).grades[0].by_scene]
    assert scenes == (["elsewhere"] if named else [])


def test_what_is_not_recorded_is_said_with_what_records_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    line = {
        "step": 1,
        "data": {"critic/score/mean": 0.5, "val-core/tpru/next_frame_prediction/acc/mean@1": 0.5},
    }
    (folder / "tpru_7b.jsonl").write_text(json.dumps(line) + "\n")
    report = RunReport(RunFiles.find(folder / "tpru_7b.jsonl"))
    write_report([report], folder / "out.html")
    words = words_of((folder / "out.html").read_text())
    assert "entropy ( actor_rollout_ref.actor.calculate_entropy=true records it)" in words
    assert "no recipe beside the metrics" in words
    assert "Accuracy in validation" in words


def test_several_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second"))]
    page = page_of(*folders)
    words = words_of(page)
    for title in ("Reward", "Accuracy in training: temporal reordering"):
        assert f"{title} " in words
    assert words.count("first second") > 10  # the names below each curve's title
    assert "first: first 6 last 6 second: first 6 last 6" in words


def test_runs_of_one_name_are_told_apart_by_their_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name / "run")
    monkeypatch.chdir(tmp_path)
    assert tpru(monkeypatch, "a/run", "b/run", "--text") == 0
    said = capsys.readouterr().out
    assert "a/run: 12 training steps" in said
    assert "b/run: 12 training steps" in said


def test_alarms_of_several_runs_are_told_run_by_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, bad = write_run(tmp_path / "sound"), write_run(tmp_path / "bad")
    lines = (metrics_line(n, critic__score__mean=0.0, critic__score__max=0.0) for n in range(1, STEPS + 1))
    (bad / "metrics.jsonl").write_text("".join(lines))
    tpru(monkeypatch, str(bad), str(sound))
    told = [line for line in capsys.readouterr().err.splitlines() if "alarms: " in line]
    assert [line.partition(",")[0] for line in told] == ["bad: alarms: no-reward", "sound: alarms: none"]


def test_responses_of_one_reward_are_shown_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for step in range(1, STEPS + 1):
        dump(folder / f"rollouts/{step}.jsonl", step, right=1.0)
    titles = [section.title for section in RunReport(RunFiles.find(folder)).sections]
    assert titles == ["Responses, all with reward 1"]


def test_a_run_that_ended_before_its_first_step_names_its_log(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "recipe.yaml").write_text('{"actor_rollout_ref": {}}')
    (tmp_path / "train.log").touch()
    files = RunFiles.find(tmp_path)
    with pytest.raises(ValueError, match=r"none has ended yet; see its log, .*/train\.log$"):
        RunReport(files)
    (tmp_path / "summary.json").touch()
    with pytest.raises(ValueError, match=r"found no step, .*: it ended before its first one; see its log, "):
        RunReport(files)


def test_the_page_is_renewed_where_steps_came(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    report = RunReport(RunFiles.find(folder))
    assert not report.renew()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(metrics_line(STEPS + 1, training__rollout_actor_probs_pearson_corr=0.5))
    assert report.renew()
    assert [alarm.name for alarm in report.alarms] == ["disagreement"]


def test_a_step_that_is_trained_again_is_shown_with_its_new_responses(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", said="the old text")
    report = RunReport(RunFiles.find(folder))
    last = folder / f"rollouts/{STEPS}.jsonl"

    def texts() -> list[str]:
        return [said.text for section in report.sections for row in section.rows for said in row.said]

    assert texts()
    assert all("the old text" in text for text in texts())
    for step in range(STEPS - 3, STEPS + 1):  # more responses than before
        dump(folder / f"rollouts/{step}.jsonl", step, said="the new text", groups=9)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(metrics_line(STEPS, critic__score__mean=0.3))
    assert report.renew()
    assert all("the new text" in text for text in texts())
    dump(last, STEPS, said="a third text", groups=1)  # while the page is made
    report.__dict__.pop("sections")
    assert any(CHANGED in text for text in texts())
    assert not any("third" in text for text in texts())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none"], "none: found nothing there"),
        (["."], "found no metrics.jsonl or experiment_log.jsonl and no rollouts"),
        (["empty.jsonl"], "empty.jsonl: found no step"),
        (["run", "run", "--rollouts", "run/rollouts"], "found 2 runs, expected one with --rollouts"),
        (["run", "run"], "found run 2 times, expected different runs"),
        (["run", "--text", "--out", "x.html"], "found --text and --out"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "empty.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    ended = str(tpru(monkeypatch, *arguments))
    assert said in ended
    assert "\n" not in ended
