"""How far an order is visible: things that move on have one, pendulums, crowds and noise have none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.builds import Run, provenance
from support.frames import clip, moment, scenes

from tpru_verl.builder.clips import Clip
from tpru_verl.builder.filters import Filters
from tpru_verl.builder.order import comes_back, distances, visible_order
from tpru_verl.builder.pictures import look_at
from tpru_verl.builder.tasks import UNSEEN, Draft, TaskOptions, drafts_of
from tpru_verl.sample import Task

RNG = np.random.default_rng(0)
WAYS = {
    "on": [i / 23 for i in range(24)],
    "on, slower and slower": [1 - (1 - i / 23) ** 2 for i in range(24)],
    "fast pendulum": [(1 + np.sin(0.7 * i)) / 2 for i in range(24)],
    "slow pendulum": [(1 + np.sin(0.3 * i)) / 2 for i in range(24)],
    "there and back": [1 - abs(1 - i / 11.3) for i in range(24)],
    "anywhere": [*RNG.random(24)],
}


def way(places: Sequence[float]) -> Clip:
    """A video of a square at these places."""
    pictures = [moment(0, place).convert("L").resize((64, 64), Image.Resampling.BOX) for place in places]
    times: list[float | None] = [i * 0.2 for i in range(len(places))]
    return replace(
        clip(len(places)), grey=np.stack([np.asarray(picture) for picture in pictures]), time=times
    )


@pytest.mark.parametrize("name", WAYS)
def test_things_that_move_on_have_a_visible_order(name: str) -> None:
    between = distances(way(WAYS[name]).grey)
    assert (visible_order(between) > 0.45) == name.startswith("on")
    back = comes_back(between).mean()
    assert back == 0 if name.startswith("on") else back > 0.4


def test_noise_has_no_order_and_a_line_has_one() -> None:
    noise = [visible_order(distances(clip(16, seed).grey)) for seed in range(8)]
    assert max(noise) < 0.45
    assert abs(float(np.mean(noise)) - 1 / 3) < 0.06
    line = np.abs(np.subtract.outer(np.arange(9.0), np.arange(9.0)))
    assert visible_order(line) == 1
    assert not comes_back(line).any()


def drawn(places: Sequence[float], options: TaskOptions) -> list[str]:
    """The reason why there is no row, "" where there is one."""
    rows = drafts_of(way(places), (0, 0), [], "", options, Filters(min_bits=0), 0)
    return ["" if isinstance(row, Draft) else row[1] for row in rows]


def test_videos_without_a_visible_order_give_no_row() -> None:
    every = TaskOptions()
    assert drawn(WAYS["fast pendulum"], every) == [UNSEEN] * 3
    assert drawn(WAYS["fast pendulum"], replace(every, min_order=0.0))[0] == "cyclic"
    assert drawn(WAYS["on"], every)[:2] == ["", ""]
    assert drawn(WAYS["on"], replace(every, min_order=1.0)) == [UNSEEN] * 3


def test_pictures_of_steps_need_not_look_alike() -> None:
    """Screens of an app: only a number from the user makes the measure count."""
    options = TaskOptions((Task.TEMPORAL_REORDERING,))
    (row,) = drafts_of(clip(8), (0, 0), [], "", options, Filters(), 0)
    assert isinstance(row, Draft)
    (row,) = drafts_of(clip(8), (0, 0), [], "", replace(options, min_order=0.9), Filters(), 0)
    assert row == ("clip-0/temporal_reordering/0", UNSEEN)


def test_back_and_forth_is_cyclic_wherever_it_is() -> None:
    """Not only where the first frame is the last: the way out alone could be the way back."""
    options = TaskOptions((Task.TEMPORAL_REORDERING,), min_order=0.0)
    there_and_back = [i / 11 for i in [*range(12), *reversed(range(12))]]
    assert drawn(there_and_back, options) == ["cyclic"]
    on_and_back = [i / 23 for i in [*range(20), 18, 17, 16]]
    (row,) = drafts_of(way(on_and_back), (0, 0), [], "", options, Filters(min_bits=0), 0)
    assert isinstance(row, Draft)
    assert all(step.frame < 16 or step.frame == 19 for step in row.steps)


def test_provenance_has_the_visible_order_of_each_row_s_clip(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", takes=2)
    manifest = build(source, "out")
    assert manifest["frames"]["left_out"] == {}
    lines = [*provenance(tmp_path / "out").values()]
    assert len({line["clip"] for line in lines}) == 2
    for line in lines:
        files = sorted((source / line["clip"]).glob("*.jpg"), key=lambda file: int(file.stem))
        greys = np.stack([look_at(file.read_bytes()).grey for file in files])
        assert line["visible_order"] == round(visible_order(distances(greys)), 3)
