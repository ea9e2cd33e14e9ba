"""Seeded rows of the three tasks, drawn from little processes whose progress is visible in the pixels alone.

An episode fixes the look of a scene (colours, place, size); its frames differ in progress only, so neither
colour nor texture tells a distractor from the right frame, and the text says nothing about the order.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from tpru_verl.files import whole
from tpru_verl.sample import NONE_OPTION, Sample, Task

SIZE = 56  # pixels: 4 x 4 patches of 14, merged 2 x 2, so four visual tokens an image
MIN_GAP = 0.12  # least distance in progress between neighbouring steps of an episode
MARGIN = 0.04  # least distance of a distractor from the interval in which it would be right
FIRST, LAST = 0.02, 0.98  # progress of the earliest and the latest frame
LETTERS = "ABCDE"
ORDERS = tuple("".join(order) for order in itertools.permutations("1234"))

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Episode:
    """One run of a scene: everything that its frames have in common."""

    scene: str
    ink: Floats  # RGB of outlines
    body: Floats  # RGB of what moves or grows
    ground: Floats  # RGB of the background
    left: float
    top: float
    length: float  # pixels along the direction of progress
    height: float  # pixels across it

    def frame(self, progress: float) -> Image.Image:
        """Draw the moment `progress` (0 to 1) as a 56 x 56 RGB image."""
        canvas = np.broadcast_to(self.ground, (SIZE, SIZE, 3)).copy()
        SCENES[self.scene](self, progress, canvas)
        return Image.fromarray(np.rint(canvas).astype(np.uint8))


def _paint(canvas: Floats, left: float, top: float, right: float, bottom: float, colour: Floats) -> None:
    """Fill a box; an edge inside a pixel covers it in part, so that progress is continuous."""
    rows, down = _covered(top, bottom)
    columns, across = _covered(left, right)
    canvas[rows, columns] += (down[:, None] * across)[..., None] * (colour - canvas[rows, columns])


def _covered(low: float, high: float) -> tuple[slice, Floats]:
    """Return the pixels that an interval touches and how much of each it covers."""
    first, last = max(math.floor(low), 0), min(math.ceil(high), SIZE)
    at = np.arange(first, last)
    return slice(first, last), np.minimum(high, at + 1) - np.maximum(low, at)


def _outline(canvas: Floats, left: float, top: float, right: float, bottom: float, episode: Episode) -> None:
    _paint(canvas, left - 2, top - 2, right + 2, bottom + 2, episode.ink)
    _paint(canvas, left, top, right, bottom, episode.ground)


def _track(episode: Episode, progress: float, canvas: Floats) -> None:
    """A track fills up from left to right."""
    right, bottom = episode.left + episode.length, episode.top + episode.height
    _outline(canvas, episode.left, episode.top, right, bottom, episode)
    filled = episode.left + progress * episode.length
    _paint(canvas, episode.left, episode.top, filled, bottom, episode.body)


def _block(episode: Episode, progress: float, canvas: Floats) -> None:
    """A block travels to the outline of its goal."""
    side = min(episode.height, 10)
    goal = episode.left + episode.length - side
    _outline(canvas, goal, episode.top, goal + side, episode.top + side, episode)
    at = episode.left + progress * (goal - episode.left)
    _paint(canvas, at, episode.top, at + side, episode.top + side, episode.body)


def _bricks(episode: Episode, progress: float, canvas: Floats) -> None:
    """A wall of three courses of four bricks piles up from the ground; the newest brick slides in."""
    floor, width, course = SIZE - 4.0, episode.length / 4, 12.0
    _paint(canvas, 0, floor, SIZE, SIZE, episode.ink)
    for brick in range(12):
        shown = min(max(progress * 12 - brick, 0), 1)
        left, bottom = episode.left + brick % 4 * width, floor - brick // 4 * course
        _paint(canvas, left, bottom - course + 1, left + shown * (width - 1), bottom, episode.body)


def _disc(episode: Episode, progress: float, canvas: Floats) -> None:
    """A disc grows around a fixed centre."""
    down, across = np.mgrid[:SIZE, :SIZE] + 0.5
    from_centre = np.hypot(across - episode.left - episode.length / 2, down - SIZE / 2)
    radius = 2 + progress * (episode.length / 2 - 2)
    canvas += np.clip(radius + 0.5 - from_centre, 0, 1)[..., None] * (episode.body - canvas)


SCENES: dict[str, Callable[[Episode, float, Floats], None]] = {
    "track": _track,
    "block": _block,
    "bricks": _bricks,
    "disc": _disc,
}
IMITATED = "track"  # the one scene that the demo's checkpoint has seen (warm_start.py)
UNSEEN = "bricks"  # the one on which the demo trains it by reward, and measures it


def make_rows(
    n: int,
    *,
    seed: int,
    scenes: Sequence[str] = (IMITATED,),
    tasks: Sequence[Task] = tuple(Task),
    start: int = 0,
) -> list[Sample]:
    """Return rows `start` to `start + n` of the endless set that `seed` names.

    A row depends on (seed, its number) alone, so any split of the work gives the same rows. Tasks take turns,
    scenes too; within a task each letter is right in one row of five, and so is "None of the choices
    provided". Every row has an episode of its own, so sets of different seeds share none.

    Raises ValueError for an unknown scene.
    """
    if unknown := [scene for scene in scenes if scene not in SCENES]:
        raise ValueError(f"scenes: found {unknown[0]!r}, expected one of {', '.join(SCENES)}")
    return [make_row(number, seed, scenes, tasks)[0] for number in range(start, start + n)]


def make_row(
    number: int, seed: int, scenes: Sequence[str] = (IMITATED,), tasks: Sequence[Task] = tuple(Task)
) -> tuple[Sample, str]:
    """Return one row of `make_rows` and the thought that leads to its answer, for supervised training."""
    rng = np.random.default_rng([seed, number])
    turn, which = divmod(number, len(tasks))
    task = tasks[which]
    episode = make_episode(scenes[turn % len(scenes)], rng)
    letter = LETTERS[turn % 5]
    if task is Task.TEMPORAL_REORDERING:
        problem, moments, thought = _reordering(letter, rng)
    else:
        # 25 turns meet every pair of right letter and place of "None", which is right where they agree.
        none_letter = LETTERS[(turn + turn // 5) % 5]
        problem, moments, thought = _choice_of_frame(task, letter, none_letter, rng)
    source = f"{episode.scene}-{seed}-{number:06d}"
    images = tuple(_png(episode.frame(moment)) for moment in moments)
    row_id = f"{task.value}-{seed}-{number:06d}"
    return Sample(problem, letter, images, task, episode.scene, source, row_id), thought


def make_episode(scene: str, rng: np.random.Generator) -> Episode:
    """Draw a look of any hue; what moves or grows is bright before a dark ground, which is learnt quickly."""
    body, ink, ground = (
        rng.integers(low, high, 3).astype(np.float64) for low, high in ((160, 256), (90, 150), (0, 80))
    )
    length, height = rng.uniform(34, 46), rng.uniform(8, 18)
    left, top = rng.uniform(3, SIZE - 3 - length), rng.uniform(4, SIZE - 4 - height)
    return Episode(scene, ink, body, ground, left, top, length, height)


def _four_steps(rng: np.random.Generator) -> list[float]:
    """Progress of steps 1 to 4, at least MIN_GAP apart."""
    slack = np.sort(rng.uniform(FIRST, LAST - 3 * MIN_GAP, 4))
    return [float(moment) + MIN_GAP * step for step, moment in enumerate(slack)]


def _reordering(letter: str, rng: np.random.Generator) -> tuple[str, list[float], str]:
    """Four frames in random order; an option lists the frames' numbers from the first moment to the last."""
    steps = _four_steps(rng)
    right = str(rng.choice(ORDERS))
    wrong = iter(rng.permutation([order for order in ORDERS if order != right]))
    options = [right if place == letter else str(next(wrong)) for place in LETTERS[:4]] + [NONE_OPTION]
    frames = " ".join(f"Frame {number}:<image>" for number in range(1, 5))
    listed = " ".join(f"{place}. {option}" for place, option in zip(LETTERS, options, strict=True))
    problem = f"Reorder the frames. {frames} Options: {listed}"
    return problem, [steps[right.index(number)] for number in "1234"], look_up(right, letter)


def look_up(order: str, letter: str) -> str:
    """Spell an order and name its option: "The order is 3 1 4 2 so 3142 B"."""
    return f"The order is {' '.join(order)} so {order} {letter}"


def _choice_of_frame(
    task: Task, letter: str, none_letter: str, rng: np.random.Generator
) -> tuple[str, list[float], str]:
    """Three given steps, four candidate frames and "None" at `none_letter`."""
    asked = 3 if task is Task.NEXT_FRAME_PREDICTION else 1
    while True:
        steps = dict(enumerate(_four_steps(rng), start=1))
        right = steps.pop(asked)
        # Where a frame could stand for the missing step; distractors keep clear of it.
        low, high = (steps[2], steps[4]) if asked == 3 else (-1.0, steps[2])
        pool = rng.uniform(FIRST, LAST, 200)
        pool = pool[(pool < low - MARGIN) | (pool > high + MARGIN)]
        wrong: list[float] = []
        for moment in pool:
            if len(wrong) < 4 and all(abs(moment - other) >= 0.02 for other in wrong):
                wrong.append(float(moment))
        if len(wrong) == 4:
            break
    candidates, listed = [], []
    for place in LETTERS:
        if place == none_letter:
            listed.append(f"{place}. {NONE_OPTION}")
        else:
            listed.append(f"{place}.<image>")
            candidates.append(right if place == letter else wrong.pop())
    given = " ".join(f"Step {step}:<image>" for step in steps)
    where = "between step 2 and 4" if asked == 3 else "before step 2"
    problem = f"Find step {asked}. {given} It is {where}. {' '.join(listed)}"
    return problem, [*steps.values(), *candidates], f"Step {asked} is {letter}"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_parquet(samples: Sequence[Sample], path: Path) -> None:
    """Write rows in the published form (problem, answer, images) with task, scene, source_id and id.

    The file appears whole or not at all: it is written under a temporary name and renamed.
    """
    images = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table(
        {
            "problem": [sample.problem for sample in samples],
            "answer": [sample.answer for sample in samples],
            "images": pa.array(
                [[{"bytes": image, "path": None} for image in sample.images] for sample in samples], images
            ),
            "task": [sample.task.value for sample in samples],
            "scene": [sample.scene for sample in samples],
            "source_id": [sample.source_id for sample in samples],
            "id": [sample.row_id for sample in samples],
        }
    )
    with whole(path) as file:
        pq.write_table(table, file, row_group_size=256)
