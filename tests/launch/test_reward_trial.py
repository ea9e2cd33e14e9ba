"""The reward is tried on the run's own rows: what a trainer would stop at after a rollout is told before."""

from pathlib import Path
from typing import Any

import pytest
from support.rows import reordering, write_parquet

from tpru_verl.launch import reward_trial as preflight
from tpru_verl.launch.settings import Settings

OURS = "pkg://tpru_verl.reward_fns.verl"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(
        tmp_path_factory.mktemp("rows") / "train.parquet", [reordering(i) for i in range(12)]
    )


def verl(rows: Path, file: str = OURS, template: str = "tpru", **kwargs: object) -> Settings:
    config: dict[str, Any] = {
        "data": {"train_files": [str(rows)], "prompt_template": template},
        "reward": {
            "custom_reward_function": {"path": file, "name": "compute_score", "reward_kwargs": kwargs}
        },
    }
    return Settings("veRL", config)


def easyr1(rows: Path, file: Path, kind: str | None = None) -> Settings:
    reward = {"reward_function": str(file), "reward_function_name": "compute_score", "reward_type": kind}
    template = str(Path(preflight.__file__).parents[1] / "prompts" / "tpru.jinja")
    data = {"train_files": f"{rows.parent}@train", "format_prompt": template}
    return Settings("EasyR1", {"data": data, "worker": {"reward": reward}})


def own(tmp_path: Path, body: str) -> Path:
    file = tmp_path / "reward.py"
    file.write_text(f"REWARD_TYPE = 'batch'\ndef compute_score(*args, **kwargs):\n    {body}\n")
    return file


@pytest.mark.parametrize(
    ("template", "preset", "form", "right", "wrong"),
    [
        ("tpru", "tpru", "<think>...</think><answer>C</answer>", 1.0, 0.125),
        ("paper", "paper", "<think>...</think><answer>C</answer>", 0.92, 0.02),
        (
            "bare",
            "tpru",
            "<think>...</think><answer>C</answer>",
            1.0,
            0.125,
        ),  # it does not say: the best counts
    ],
)
def test_our_templates_agree_with_our_rewards(
    rows: Path, template: str, preset: str, form: str, right: float, wrong: float
) -> None:
    report = preflight.try_reward(verl(rows, template=template, preset=preset))
    assert (report.rows, report.form) == (8, form)
    assert (report.right, report.wrong) == pytest.approx((right, wrong))


def test_a_template_that_asks_for_another_form_than_the_reward_reads(rows: Path, tmp_path: Path) -> None:
    template = tmp_path / "boxed.jinja"
    template.write_text("{{ content }} Put the answer into \\boxed{}.")
    file = own(tmp_path, "return float('<answer>B</answer>' in kwargs['solution_str'])")
    with pytest.raises(
        ValueError, match=r"found 0 for right answers and 0 .* asks \(\\boxed\{C\}\), expected"
    ):
        preflight.try_reward(verl(rows, str(file), template=str(template)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"ZeroDivisionError: division by zero \(reward\.py, line 3\)"),
        ("return 'high'", "score: found 'high', expected a number"),
        ("return None", "score: found None, expected a number"),
        ("return float('nan')", "score: found nan, expected a number"),
        ("return {'reward': 1.0}", "found keys reward, expected 'score' among them"),
        ("import os; os._exit(3)", "ended its process: exit code 3"),
        (
            "return {'score': 1.0, **({'x': 1} if kwargs['solution_str'] else {})}",
            r"found keys \['x'\] in some samples, expected the same in all",
        ),
    ],
)
def test_what_verl_would_stop_at(rows: Path, tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        preflight.try_reward(verl(rows, str(own(tmp_path, body))))
    assert "\n" not in str(caught.value)


def test_what_does_not_load(rows: Path, tmp_path: Path) -> None:
    for text, message in (
        ("def compute_score(:", r"SyntaxError: .*reward\.py"),
        ("import no_such", r"No module named 'no_such' \(reward\.py, line 1\)"),
        ("def score(): ...", "found functions score, expected compute_score"),
    ):
        (tmp_path / "reward.py").write_text(text)
        with pytest.raises(ValueError, match=message):
            preflight.try_reward(verl(rows, str(tmp_path / "reward.py")))
    with pytest.raises(ValueError, match="found no such file"):
        preflight.try_reward(verl(rows, str(tmp_path / "none.py")))
    with pytest.raises(FileNotFoundError, match="nothing given"):
        preflight.try_reward(verl(rows, ""))


def test_an_async_reward_of_verl_is_awaited(rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text("async def compute_score(solution_str, **_):\n    return float('>B<' in solution_str)\n")
    assert preflight.try_reward(verl(rows, str(file))).right == 1.0


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("return [{'overall': 1.0}]", None, "found a list of 1, expected a list of 40 scores"),
        ("return 1.0", "batch", "found a float, expected a list"),
        ("return [{'accuracy': 1.0} for _ in args[0]]", None, "expected 'overall' among them"),
        ("return [{'overall': 1.0, 'why': 'x'} for _ in args[0]]", None, "why: found 'x', expected a number"),
        ("return 1.0", "sequential", "found a float, expected a dict with 'overall'"),
        ("return 1.0", "alone", "REWARD_TYPE: found 'alone', expected batch or sequential"),
    ],
)
def test_what_easyr1_would_stop_at(
    rows: Path, tmp_path: Path, body: str, kind: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        preflight.try_reward(easyr1(rows, own(tmp_path, body), kind))


def test_easyr1_gets_ours_by_path(rows: Path) -> None:
    from tpru_verl.reward_fns import easyr1 as adapter

    assert preflight.try_reward(easyr1(rows, Path(adapter.__file__))).right == 1.0


def test_a_reward_that_does_not_answer(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "SECONDS", 1)
    with pytest.raises(ValueError, match="found no answer in 1 s"):
        preflight.try_reward(verl(rows, str(own(tmp_path, "import time; time.sleep(30)"))))


def test_a_model_that_does_not_know_the_words_of_the_rows_is_named(rows: Path, checkpoint: Path) -> None:
    known = verl(rows)
    tiny = Settings("veRL", {**known.config, "actor_rollout_ref": {"model": {"path": str(checkpoint)}}})
    assert "warning" not in str(preflight.try_reward(known))
    said = str(preflight.try_reward(tiny))
    assert f"warning: actor_rollout_ref.model.path={checkpoint}: its tokenizer does not know" in said
    assert "tpru_tiny_cpu is for the rows of `tpru demo`" in said
