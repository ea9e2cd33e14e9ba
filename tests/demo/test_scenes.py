"""The demo's rows: same rows for the same seed, right answers that the pixels prove, no way to guess."""

import io
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from tpru_verl.demo.scenes import LETTERS, SCENES, SIZE, Episode, make_rows, write_parquet
from tpru_verl.sample import NONE_OPTION, Sample, Task, problems_of, recognise_task

# A block leaves its old place empty, so distance in pixels does not measure its progress.
FILLING = [scene for scene in SCENES if scene != "block"]


def pixels(image: bytes) -> NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(image)), dtype=np.float64)


def rows_of(task: Task, scenes: Sequence[str] = ("track",)) -> list[Sample]:
    return make_rows(50, seed=3, tasks=[task], scenes=scenes)


def candidates(row: Sample) -> dict[str, bytes]:
    """Letter -> image of the options that are images."""
    letters = [letter for letter, text in row.options.items() if text == "<image>"]
    return dict(zip(letters, row.images[3:], strict=True))


def test_rows_do_not_depend_on_how_the_work_is_split():
    whole = make_rows(30, seed=1, scenes=list(SCENES))
    parts = [make_rows(10, seed=1, start=start, scenes=list(SCENES)) for start in (20, 0, 10)]
    assert whole == parts[1] + parts[2] + parts[0]


def test_seeds_share_no_picture():
    train, test = ({image for row in make_rows(150, seed=seed) for image in row.images} for seed in (1, 2))
    assert not train & test


def test_tasks_letters_and_none_are_balanced():
    rows = make_rows(150, seed=0)
    assert set(Counter(row.task for row in rows).values()) == {50}
    for task in Task:
        mine = [row for row in rows if row.task is task]
        assert Counter(row.answer for row in mine) == dict.fromkeys(LETTERS, 10)
        assert sum(row.options[row.answer] == NONE_OPTION for row in mine) == 10


def test_place_of_none_says_nothing_about_the_answer():
    rows = make_rows(75, seed=0, tasks=[Task.NEXT_FRAME_PREDICTION])
    places = [next(letter for letter, text in row.options.items() if text == NONE_OPTION) for row in rows]
    assert set(Counter(zip(places, (row.answer for row in rows), strict=True)).values()) == {3}


@pytest.mark.parametrize("task", Task)
def test_rows_are_valid_and_their_text_names_the_task(task: Task):
    for row in rows_of(task):
        assert problems_of(row.problem, row.answer, len(row.images)) == []
        assert recognise_task(row.problem) is task


@pytest.mark.parametrize("task", [Task.NEXT_FRAME_PREDICTION, Task.PREVIOUS_FRAME_REVIEW])
def test_text_of_frame_choices_is_the_same_for_all_answers(task: Task):
    """Only the place of the "None" option varies."""
    assert len({row.problem for row in rows_of(task)}) == 5


@pytest.mark.parametrize("scene", FILLING)
def test_only_the_right_order_takes_no_step_back(scene: str):
    """Going one way, the steps' changes add up to the whole change; an order's reverse goes one way, too."""
    for row in rows_of(Task.TEMPORAL_REORDERING, scenes=[scene]):
        frames = {str(number): pixels(image) for number, image in enumerate(row.images, start=1)}
        straight = set()
        for letter, order in row.options.items():
            if order != NONE_OPTION:
                changes = [np.abs(frames[a] - frames[b]).sum() for a, b in itertools.pairwise(order)]
                whole = np.abs(frames[order[0]] - frames[order[-1]]).sum()
                if sum(changes) < 1.02 * whole:
                    straight.add(letter)
        if row.options[row.answer] != NONE_OPTION:
            reverse = row.options[row.answer][::-1]
            assert straight - {letter for letter, order in row.options.items() if order == reverse} == {
                row.answer
            }


@pytest.mark.parametrize("scene", FILLING)
def test_progress_fills_the_picture(scene: str):
    colours = [np.array(colour, dtype=np.float64) for colour in ((0, 0, 0), (255, 0, 0), (0, 0, 255))]
    episode = Episode(scene, *colours, left=8, top=20, length=40, height=12)
    red = [np.asarray(episode.frame(progress))[..., 0].sum() for progress in (0.1, 0.3, 0.6, 0.9)]
    assert red == sorted(set(red))


@pytest.mark.parametrize("scene", FILLING)
def test_only_the_right_candidate_lies_between_steps_2_and_4(scene: str):
    for row in rows_of(Task.NEXT_FRAME_PREDICTION, scenes=[scene]):
        second, fourth = pixels(row.images[1]), pixels(row.images[2])
        fits = [
            letter for letter, image in candidates(row).items() if 0.05 < share(image, second, fourth) < 0.95
        ]
        assert fits == ([] if row.options[row.answer] == NONE_OPTION else [row.answer]), row.row_id


@pytest.mark.parametrize("scene", FILLING)
def test_only_the_right_candidate_lies_before_step_2(scene: str):
    for row in rows_of(Task.PREVIOUS_FRAME_REVIEW, scenes=[scene]):
        second, fourth = pixels(row.images[0]), pixels(row.images[2])
        fits = [letter for letter, image in candidates(row).items() if share(image, second, fourth) < 0.02]
        assert fits == ([] if row.options[row.answer] == NONE_OPTION else [row.answer]), row.row_id


def share(image: bytes, start: NDArray[np.float64], end: NDArray[np.float64]) -> float:
    """How much of the change from `start` to `end` a picture shows: 0 before `start`, 1 after `end`."""
    change = end - start
    return float(((pixels(image) - start) * change).sum() / (change**2).sum())


def test_pictures_have_the_size_that_the_model_expects():
    for scene in SCENES:
        for image in make_rows(1, seed=0, scenes=[scene])[0].images:
            assert pixels(image).shape == (SIZE, SIZE, 3)


def test_parquet_has_the_published_columns_and_replaces_the_old_file_whole(tmp_path: Path):
    path = tmp_path / "new" / "train.parquet"
    for n in (3, 6):
        rows = make_rows(n, seed=0)
        write_parquet(rows, path)
    table = pq.read_table(path)
    assert table.column_names == ["problem", "answer", "images", "task", "scene", "source_id", "id"]
    assert table["images"].to_pylist()[4] == [{"bytes": image, "path": None} for image in rows[4].images]
    assert len(set(table["id"].to_pylist())) == len(set(table["source_id"].to_pylist())) == 6
    assert [file.name for file in path.parent.iterdir()] == ["train.parquet"]


def test_an_unknown_scene_is_named():
    with pytest.raises(ValueError, match=r"scenes: found 'sea', expected one of track, block, bricks, disc"):
        make_rows(1, seed=0, scenes=["sea"])
