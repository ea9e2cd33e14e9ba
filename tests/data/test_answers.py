"""An answer means the same to the grader, to every count and in training, however it is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.results import read as read_result
from support.rows import Row, reordering, write_parquet

from tpru_verl.data.audit import report
from tpru_verl.data.audit.measure import audit
from tpru_verl.data.prepare import PrepareOptions, prepare
from tpru_verl.data.source.forms import Keys, Source, TrainerKeys
from tpru_verl.data.source.rows import read_rows
from tpru_verl.data.stats import statistics
from tpru_verl.grading.published import published_reward

B = ["B", "b", "(B)", "B.", "Option B", "<answer> B </answer>", "3 1 4 2", "B. 3 1 4 2", "**B**"]
NONE = ["E", "(E)", "None of the choices provided", "E."]
FREE = "Put these into the correct order: <image><image><image><image>"
AS_THEY_CAME = ["4 2 3 1", "4231", "[4, 2, 3, 1]", "DBCA", "4 -> 2 -> 3 -> 1", "3 0 2 1"]


def source(
    folder: Path, answers: Sequence[object], keys: Keys | TrainerKeys | None = None, **row: Any
) -> Source:
    rows: list[Row] = [reordering(i, answer=answer, **row) for i, answer in enumerate(answers)]
    return Source.open(str(write_parquet(folder / "rows.parquet", rows)), keys=keys)


def answers_of(source: Source) -> list[object]:
    return [row.answer for unit in source.units for row in read_rows(unit, source.form(unit))]


def test_every_form_of_a_letter_is_the_letter(tmp_path: Path) -> None:
    assert answers_of(source(tmp_path, B)) == ["B"] * len(B)
    assert answers_of(source(tmp_path, NONE, TrainerKeys())) == ["E"] * len(NONE)


def test_an_order_and_what_cannot_be_read_stay_as_they_came(tmp_path: Path) -> None:
    assert answers_of(source(tmp_path, AS_THEY_CAME, problem=FREE)) == AS_THEY_CAME
    unread = ["Z", "B or C", "a red disc", "", "[1, 2]"]
    assert answers_of(source(tmp_path, unread)) == unread


def test_easyr1_hands_the_answer_of_its_file_to_the_reward(tmp_path: Path) -> None:
    assert answers_of(source(tmp_path, ["(B)"], TrainerKeys(prompt=None))) == ["(B)"]


def test_counts_are_of_letters(tmp_path: Path) -> None:
    found = statistics(source(tmp_path, [*B, *NONE]), workers=1)
    assert {letter: n for (_, letter), n in found.answers.items()} == {"B": len(B), "E": len(NONE)}
    assert sum(found.none_right.values()) == len(NONE)


def test_the_audit_measures_rows_however_their_answers_are_written(tmp_path: Path) -> None:
    plain, written = (
        report.as_json(audit(source(tmp_path, answers), seed=3, workers=1))
        for answers in (["B", "E"] * 20, ["(B)", "E."] * 20)
    )
    assert written == plain
    assert plain["measured"] == 40


def test_prepared_rows_hold_the_letter_so_that_the_published_reward_pays(tmp_path: Path) -> None:
    prepare(source(tmp_path, ["(B)", "Option B", "B"]), tmp_path / "out", PrepareOptions(), workers=1)
    for row in read_result(tmp_path / "out"):
        assert row["answer"] == row["reward_model"]["ground_truth"] == "B"
        assert published_reward("<think>x</think><answer>B</answer>", row["answer"]) == pytest.approx(0.92)


def test_training_gets_the_letter_and_the_options_of_a_column(tmp_path: Path, checkpoint: Path) -> None:
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from transformers import AutoProcessor

    from tpru_verl.plugin.dataset import TPRUDataset

    texts = ["1 2 3 4", "3 1 4 2", "4 3 2 1"]
    source(tmp_path, ["(B)", "3 1 4 2"], problem=FREE, choices=texts)
    processor = AutoProcessor.from_pretrained(checkpoint)
    config = OmegaConf.create({"prompt_key": "prompt", "image_key": "images", "max_prompt_length": 4096})
    for item in TPRUDataset([str(tmp_path / "rows.parquet")], processor.tokenizer, config, processor):
        assert item["reward_model"]["ground_truth"] == "B"
        assert item["extra_info"]["options"] == dict(zip("ABC", texts, strict=True))
        said = "".join(part.get("text", "") for part in item["raw_prompt"][0]["content"])
        assert "A. 1 2 3 4\nB. 3 1 4 2\nC. 4 3 2 1" in said
