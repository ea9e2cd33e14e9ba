"""The files that a run of veRL writes: metrics kept through a resume, answers drawn and named."""

import json
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl")
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import trainer_base
from verl.utils import tracking

from tpru_verl.plugin import records

VALIDATED = {"val-core/tpru/x/acc/mean@1": 0.5}


def trained(step: int) -> dict[str, float]:
    return {"training/global_step": step, "critic/score/mean": 0.1 * step}


def log(*entries: tuple[int, dict[str, float]]) -> None:
    logger = tracking.FileLogger("project", "experiment")
    for step, data in entries:
        logger.log(data, step)
    logger.finish()


def logged(path: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], next(iter(line["data"]))) for line in lines]


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    return tmp_path / "metrics.jsonl"


@pytest.mark.parametrize("validates", [True, False])
def test_a_resumed_run_keeps_the_steps_before_and_no_step_twice(metrics: Path, validates: bool) -> None:
    log((0, VALIDATED), (1, trained(1)), (2, trained(2)), (3, trained(3)))
    with metrics.open("a") as file:
        file.write('{"step": 4, "data": {"cut')  # killed in the middle of a line
    log(*[(2, VALIDATED)] * validates, (3, trained(3)), (4, trained(4)))
    steps = [step for step, first in logged(metrics) if first == "training/global_step"]
    assert steps == [1, 2, 3, 4]
    assert logged(metrics)[0] == (0, next(iter(VALIDATED)))


@pytest.mark.parametrize("first", [(0, VALIDATED), (1, trained(1))])
def test_a_run_from_the_beginning_starts_its_file_anew(
    metrics: Path, first: tuple[int, dict[str, float]]
) -> None:
    log((0, VALIDATED), *((step, trained(step)) for step in range(1, 9)))
    log(first)
    assert [step for step, _ in logged(metrics)] == [first[0]]


def test_a_resume_that_logs_nothing_leaves_the_file(metrics: Path) -> None:
    log((1, trained(1)))
    log()
    assert [step for step, _ in logged(metrics)] == [1]


@pytest.mark.parametrize("root", [None, "elsewhere"])
def test_the_file_is_where_stock_verl_has_it(
    root: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VERL_FILE_LOGGER_PATH", raising=False)
    monkeypatch.delenv("VERL_FILE_LOGGER_ROOT", raising=False)
    if root:
        monkeypatch.setenv("VERL_FILE_LOGGER_ROOT", root)
    stock = tracking.FileLogger.__mro__[1]
    found = stock("project", "experiment")  # type: ignore[call-arg]
    found.finish()
    ours = tracking.FileLogger("project", "experiment")
    assert Path(str(ours.filepath)) == Path(str(found.filepath)).absolute()


def keys(groups: int, samples: int) -> list[str]:
    return [f"{group:03}_{sample}_0" for group in range(groups) for sample in range(samples)]


@pytest.mark.parametrize(
    ("most", "expected"), [(None, 24), (24, 24), (23, 16), (16, 16), (8, 8), (3, 8), (0, 8)]
)
def test_groups_are_drawn_whole(most: int | None, expected: int) -> None:
    found = records.whole_groups(keys(3, 8), most)
    assert len(found) == expected
    assert found == sorted(found)


def test_a_validation_writes_the_same_rows_each_time_whatever_their_order() -> None:
    names = [f"row {i}" for i in range(50)]
    first = {names[i] for i in records.same_ones(names, 10)}
    names.reverse()
    assert {names[i] for i in records.same_ones(names, 10)} == first
    assert len(first) == 10
    assert records.same_ones(names, None) == list(range(50))


Batch = namedtuple("Batch", "keys tags partition_id")


def config_of(mode: str) -> Any:
    folders = {"rollout_data_dir": "r", "validation_data_dir": "v"}
    return OmegaConf.create({"trainer": {**folders, "v1": {"trainer_mode": mode}}})


def test_answers_are_drawn_before_they_are_decoded_and_have_the_id_of_their_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[dict[str, Any]] = []

    class Trainer:
        config = config_of("sync")

        def fit(self, manager: Any) -> None:
            manager.generate_sequences(
                {"uid": ["000", "001"], "extra_info": [{"row_id": "a", "place": "x", "task": "t"}, {}]}
            )
            manager.generate_sequences(
                {"uid": ["002"], "extra_info": [{"place": "FILE row 3"}], "validate": True}
            )
            batch = Batch(keys(2, 4), [{}] * 8, "train")
            self._log_rollout_data(batch, {}, "r")
            extra = {"uid": ["002_0_0"], "reward": [1.0]}
            self._dump_generations(["p"], ["a"], ["A"], [1.0], extra, "v")

        def _log_rollout_data(self, batch: Any, timing: dict, folder: str) -> None:
            n = len(batch.keys)
            self._dump_generations(["p"] * n, ["a"] * n, ["A"] * n, [1.0] * n, {"uid": batch.keys}, folder)

        def _dump_generations(self, *columns: Any) -> None:
            written.append({"n": len(columns[0]), "extra": columns[4], "to": columns[5]})

    monkeypatch.setenv(records.MOST_ANSWERS, "4")
    records.sample_answers(SimpleNamespace(PPOTrainer=Trainer))  # type: ignore[arg-type]
    Trainer().fit(SimpleNamespace(generate_sequences=lambda prompts: None))
    assert written == [
        {"n": 4, "extra": {"uid": keys(1, 4), "row_id": ["a"] * 4, "task": ["t"] * 4}, "to": "r"},
        {
            "n": 1,
            "extra": {"uid": ["002_0_0"], "reward": [1.0], "row_id": ["FILE row 3"], "task": [None]},
            "to": "v",
        },
    ]


@pytest.mark.parametrize(("mode", "named"), [("sync", [None]), ("separate_async", ["b"])])
def test_a_prompt_that_a_filter_threw_away_is_forgotten_with_its_step(
    mode: str, named: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DAPO evicts more prompts than it trains on. An asynchronous trainer may train on one later."""
    written: list[dict[str, Any]] = []

    class Trainer:
        config = config_of(mode)

        def fit(self, manager: Any) -> None:
            infos = [{"row_id": name, "task": "t"} for name in "ab"]
            manager.generate_sequences({"uid": ["000", "001"], "extra_info": infos})
            self._log_rollout_data(Batch(["000_0_0"], [{}], "train"), {}, "r")
            self._log_rollout_data(Batch(["001_0_0"], [{}], "train"), {}, "r")

        def _log_rollout_data(self, batch: Any, timing: dict, folder: str) -> None:
            self._dump_generations(["p"], ["a"], ["A"], [1.0], {"uid": batch.keys}, folder)

        def _dump_generations(self, *columns: Any) -> None:
            written.append(columns[4])

    records.sample_answers(SimpleNamespace(PPOTrainer=Trainer))  # type: ignore[arg-type]
    Trainer().fit(SimpleNamespace(generate_sequences=lambda prompts: None))
    assert [extra["row_id"] for extra in written] == [["a"], named]


def test_the_patches_are_applied_to_verls_own_classes() -> None:
    for name in ("fit", "_log_rollout_data", "_dump_generations"):
        assert getattr(trainer_base.PPOTrainer, name).__module__.startswith("tpru_verl.plugin."), name
    assert tracking.FileLogger.__module__ == "tpru_verl.plugin.records"
