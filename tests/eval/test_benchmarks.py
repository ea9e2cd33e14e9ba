"""Benchmarks: rows of each published layout become the same questions, and nothing is dropped in silence."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.benchmark_rows import (
    LAYOUTS,
    blink_hub,
    lego_tsv,
    mmcr_tsv,
    muirbench_hub,
    parquet,
    plain_tsv,
    tsv,
)
from support.hub import hub
from support.rows import picture, reordering, write_parquet

from tpru_verl.eval.asking import STYLES, prompt_of
from tpru_verl.eval.benchmarks import BENCHMARKS, find, load
from tpru_verl.eval.benchmarks.base import answers
from tpru_verl.eval.engines.base import parts_of
from tpru_verl.eval.item import Item, compose, listed, placed, rotated, rotations
from tpru_verl.sample import IMAGE_TAG, Task

EVERY = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]


def test_every_benchmark_has_a_fixture() -> None:
    assert set(LAYOUTS) == set(BENCHMARKS)


@pytest.mark.parametrize(("name", "layout"), EVERY)
class TestLayouts:
    def test_rows_can_be_asked(self, name: str, layout: Callable[[Path], Path], tmp_path: Path) -> None:
        loaded = load(BENCHMARKS[name], str(layout(tmp_path)))
        for item in loaded.items:
            assert item.broken is None
            assert item.problem.count(IMAGE_TAG) == len(item.images) >= 1
            assert item.answer in item.options or not item.options
            assert item.task
            for style in STYLES:
                prompt = prompt_of(loaded.benchmark, item, style)
                assert parts_of(prompt).count(IMAGE_TAG) == len(item.images)
                assert all(text in prompt for text in item.options.values())

    def test_the_number_of_rows_is_compared_with_the_published_one(
        self, name: str, layout: Callable[[Path], Path], tmp_path: Path
    ) -> None:
        notes = load(BENCHMARKS[name], str(layout(tmp_path))).notes
        assert any(f"published {BENCHMARKS[name].rows:,}" in note for note in notes)


def items(name: str, path: Path) -> list[Item]:
    return load(BENCHMARKS[name], str(path)).items


@pytest.mark.parametrize("name", ["tpru-test", "muirbench"])
def test_both_layouts_give_the_same_questions(name: str, tmp_path: Path) -> None:
    hub_rows, table = (items(name, layout(tmp_path / str(i))) for i, layout in enumerate(LAYOUTS[name]))
    for ours, theirs in zip(hub_rows, table, strict=True):
        assert (ours.options, ours.answer, ours.images) == (theirs.options, theirs.answer, theirs.images)
        assert ours.problem.split() == theirs.problem.split()


def test_tpru_rows_are_asked_as_they_were_trained(tmp_path: Path) -> None:
    row = reordering(3)
    (item,) = items("tpru-test", write_parquet(tmp_path / "rows.parquet", [row]))
    assert item.problem == row["problem"]
    assert item.task == Task.TEMPORAL_REORDERING
    assert item.images == tuple(row["images"])


def test_counterparts_are_one_source(tmp_path: Path) -> None:
    first, second, *others = items("muirbench", muirbench_hub(tmp_path))
    assert first.source == second.source
    assert len({first.source, *(item.source for item in others)}) == 3


def test_images_stand_where_they_are_named(tmp_path: Path) -> None:
    order, options, _ = items("lego-puzzles", lego_tsv(tmp_path))
    assert order.problem.startswith(f"Put the steps {IMAGE_TAG}, {IMAGE_TAG}, {IMAGE_TAG} and {IMAGE_TAG}")
    assert (order.options, order.answer) == ({}, "BDAC")
    assert options.options["C"] == IMAGE_TAG
    assert "sequence of letters" in prompt_of(BENCHMARKS["lego-puzzles"], order, "benchmark")


def test_a_row_that_names_another_has_its_picture(tmp_path: Path) -> None:
    first, second, third = items("blink", plain_tsv(tmp_path, "BLINK"))
    assert first.images == second.images != third.images
    assert first.source == second.source != third.source


def test_open_questions_are_left_out_and_counted(tmp_path: Path) -> None:
    for layout in LAYOUTS["mmmu-dev"]:
        loaded = load(BENCHMARKS["mmmu-dev"], str(layout(tmp_path / layout.__name__)))
        assert [item.id for item in loaded.items] == ["dev_Art_1"]
        assert "rows left out" in loaded.notes[0]


def test_images_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    (item,) = items("mmmu-dev", LAYOUTS["mmmu-dev"][0](tmp_path))
    assert item.images == (picture(2), picture(1), picture(1))


@pytest.mark.parametrize("between", [", ", "\n", ",\n", "\r\n"])
@pytest.mark.parametrize("missing", ["A", "B", "C", "D", "BD"])
def test_nan_is_a_missing_option_and_none_is_an_option(missing: str, between: str, tmp_path: Path) -> None:
    texts = {letter: "nan" if letter in missing else f"it is {letter}" for letter in "ABCD"}
    kept = {letter: text for letter, text in texts.items() if letter not in missing}
    kept[max(kept)] = texts[max(kept)] = "None"
    answer = min(kept)
    listed = between.join(f"{letter}: {text}" for letter, text in texts.items())
    row = {"index": 0, "image": picture(0), "answer": answer, "category": "c", "l2_category": "l"}
    hub = {**row, "question": f"Which?\nOptions: {listed}", "meta_info": {"source": "x"}}
    table = tsv(tmp_path / "MMStar.tsv", [{**row, "question": "Which?", **texts}])
    for path in (parquet(tmp_path / "q.parquet", [hub]), table):
        (item,) = items("mmstar", path)
        assert item.broken is None
        assert (item.options, item.answer) == (kept, answer)
        assert "nan" not in item.problem
        assert all(f"{letter}: {text}" in item.problem.replace(". ", ": ") for letter, text in kept.items())
        assert not re.search(r"[,;] *$|: ,|, *,|\n\s*\n(?=[A-D]: )", item.problem)
        assert not any(f"{letter}:" in item.problem for letter in missing)
        assert len(rotations(item)) == len(kept)


@pytest.mark.parametrize(
    "cells", ["-" * 100_000 + "1", "[" * 10_000, "['a'" + ", 'a'" * 100_000 + "]", "{", 7, [{}]]
)
def test_options_that_are_no_list_are_one_line(cells: object) -> None:
    with pytest.raises(ValueError, match=r"options: found .*, expected") as caught:
        answers(cells)
    assert len(str(caught.value)) < 120
    assert "\n" not in str(caught.value)


def test_rows_of_one_id_get_ids_that_no_other_row_has(tmp_path: Path) -> None:
    rows = [{**reordering(i), "id": name} for i, name in enumerate(["a", "a", "a#2", "a", "b"])]
    loaded = load(BENCHMARKS["tpru-test"], str(write_parquet(tmp_path / "rows.parquet", rows)))
    assert [item.id for item in loaded.items] == ["a", "a#3", "a#2", "a#4", "b"]
    assert loaded.repeated == ["a"]


def test_rotations_of_a_circular_table_are_left_out(tmp_path: Path) -> None:
    loaded = load(BENCHMARKS["mmcr"], str(mmcr_tsv(tmp_path)))
    assert len(loaded.items) == 3
    assert loaded.notes[0].startswith("3 rows left out")


def test_words_that_are_asked_for(tmp_path: Path) -> None:
    letter, number, word = items("realworldqa", LAYOUTS["realworldqa"][0](tmp_path))
    assert letter.options == {"A": "Left", "B": "Right"}
    assert "100" in number.accepted
    assert word.accepted == ("Yes", "No")


class TestRefusals:
    def test_missing_columns_are_named(self, tmp_path: Path) -> None:
        path = tsv(tmp_path / "x.tsv", [{"index": 0, "question": "?", "A": "x", "image": picture(0)}])
        with pytest.raises(
            ValueError, match=r"x\.tsv: found columns A, image, index, question; expected .*answer"
        ):
            load(BENCHMARKS["lego-puzzles"], str(path))

    def test_a_broken_row_is_kept_and_says_why(self, tmp_path: Path) -> None:
        rows = [
            {"index": 0, "question": "<image 3>?", "A": "x", "B": "y", "answer": "A", "image": picture(0)},
            {"index": 1, "question": "?", "A": "x", "B": "y", "answer": "Z", "image": picture(0)},
            {"index": 2, "question": "?", "A": "x", "B": "y", "answer": "A", "image": "A" * 67},
        ]
        broken = [item.broken or "" for item in items("blink", tsv(tmp_path / "x.tsv", rows))]
        assert "row 0: images: found 1, expected 3" in broken[0]
        assert "row 1: answer: found 'Z', expected one of A, B" in broken[1]
        assert "row 2: found base64 that cannot be decoded" in broken[2]

    @pytest.mark.parametrize("answer", ["(B)", "b", "B.", "B. y"])
    def test_an_answer_in_another_form_is_its_letter(self, tmp_path: Path, answer: str) -> None:
        row = {"index": 0, "question": "?", "A": "x", "B": "y", "answer": answer, "image": picture(0)}
        (item,) = items("blink", tsv(tmp_path / "x.tsv", [row]))
        assert (item.answer, item.broken) == ("B", None)

    def test_an_empty_table(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tsv"
        path.write_text("index\tquestion\tA\tB\tanswer\timage\n")
        with pytest.raises(ValueError, match="found"):
            load(BENCHMARKS["blink"], str(path))

    def test_names(self) -> None:
        assert [benchmark.name for benchmark in find("MuirBench,tpru_test,muirbench")] == [
            "muirbench",
            "tpru-test",
        ]
        with pytest.raises(
            ValueError, match="--bench: found 'mmlu', expected one or more of tpru-test, muirbench"
        ):
            find("mmlu")

    def test_another_checksum_is_said(self, tmp_path: Path) -> None:
        path = lego_tsv(tmp_path)
        assert any(
            hashlib.md5(path.read_bytes()).hexdigest() in note
            for note in load(BENCHMARKS["lego-puzzles"], str(path)).notes
        )

    def test_no_network_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("LMUData", str(tmp_path))
        with pytest.raises(
            ValueError, match=r"MMT-Bench_VAL\.tsv: not readable from the Hub.*--data mmtbench=FILE"
        ):
            load(BENCHMARKS["mmtbench"])


def test_a_table_in_lmudata_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMUData", str(tmp_path))
    lego_tsv(tmp_path)
    assert len(load(BENCHMARKS["lego-puzzles"]).items) == 3


def test_from_the_hub_config_by_config(tmp_path: Path) -> None:
    """As published, with a part of a card that names its configurations."""
    blink_hub(tmp_path / "repo")
    (tmp_path / "repo/README.md").write_text(
        "---\nconfigs:\n- config_name: Jigsaw\n  data_files:\n  - split: val\n    path: Jigsaw/val-*\n---\n"
    )
    with hub(BENCHMARKS["blink"].hub, {"main": tmp_path / "repo"}) as address:
        code = (
            "from dataclasses import replace; from tpru_verl.eval.benchmarks import BENCHMARKS, load; "
            "b = replace(BENCHMARKS['blink'], configs=('Jigsaw',), revision=None); "
            "print(*[i.id for i in load(b).items])"
        )
        assert run_with_hub(code, address, tmp_path) == "val_Jigsaw_0 val_Jigsaw_1 val_Jigsaw_2"


def run_with_hub(code: str, address: str, folder: Path) -> str:
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
    }
    environment |= {"LMUData": str(folder), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


TEXTS = st.lists(
    st.one_of(st.just(IMAGE_TAG), st.from_regex(r"[a-z]{1,6}( [a-z0-9]{1,4})?", fullmatch=True)),
    min_size=2,
    max_size=5,
    unique_by=lambda text: text if text != IMAGE_TAG else object(),
)


@settings(deadline=None)
@given(TEXTS, st.data())
def test_rotation_moves_options_with_their_pictures_and_the_answer_with_both(
    texts: list[str], data: Any
) -> None:
    options = listed(texts)
    problem = compose(f"Given {IMAGE_TAG} and {IMAGE_TAG}, which?", options)
    images = tuple(bytes([i]) for i in range(problem.count(IMAGE_TAG)))
    answer = data.draw(st.sampled_from(sorted(options)))
    item = Item("x", problem, answer, images, options)

    def meant(shown: Item) -> list[tuple[str, bytes | None]]:
        """Each option's text, and its picture."""
        pictures = iter(shown.images[2:])
        return [(text, next(pictures) if text == IMAGE_TAG else None) for text in shown.options.values()]

    before = meant(item)
    for turn in rotations(item):
        after = meant(turn)
        assert sorted(map(str, after)) == sorted(map(str, before))
        assert after[list(options).index(turn.answer)] == before[list(options).index(answer)]
        assert turn.images[:2] == images[:2]
        assert list(turn.options) == list(options)
        assert all(f"{letter}. {text}" in turn.problem for letter, text in turn.options.items())
    assert rotated(item, len(options)).options == item.options
    assert len({str(meant(turn)) for turn in rotations(item)}) == len(options)


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), max_size=6))
def test_numbered_tags_keep_every_picture(numbers: list[int]) -> None:
    images = [b"1", b"2", b"3", b"4"]
    problem, found = placed(" ".join(f"<image {n}>" for n in numbers) or "none", images)
    assert problem.count(IMAGE_TAG) == len(found)
    assert set(found) == set(images)
    if numbers:
        assert found[-len(numbers) :] == tuple(images[n - 1] for n in numbers)
