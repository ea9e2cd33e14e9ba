"""Brick by brick: small models that are put together on a plate, seen from above at an angle.

Every brick rests on the plate or on a brick below it. What is built is fixed by its kind, its colours, sizes
and place by the draw. Half of the models are taken apart: more bricks are no sign of a later moment.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from tpru_verl.builder.clips import Frame

SCENE_BY_KIND = True
KINDS = ("wall", "tower", "stairs", "pyramid", "gate")
_NAMES = {"stairs": "stairs"}
SIDE = 384  # pixels
PLATE = 10  # studs
STUD = 16  # pixels by which a stud leads to the right; half of it leads down
COURSE = 15  # pixels of a brick's height

_COLOURS = {
    "red": (200, 45, 40),
    "blue": (40, 90, 190),
    "yellow": (235, 190, 40),
    "green": (50, 150, 70),
    "white": (235, 235, 230),
    "black": (55, 55, 60),
    "orange": (235, 125, 35),
    "brown": (125, 80, 50),
}
_GROUNDS = ((215, 220, 225), (190, 205, 190), (225, 215, 200), (205, 205, 220))


class Brick(NamedTuple):
    """Place and size in studs; `z` in courses."""

    x: int
    y: int
    z: int
    width: int
    depth: int
    colour: str

    @property
    def name(self) -> str:
        return f"{self.colour} {min(self.width, self.depth)}x{max(self.width, self.depth)} brick"


def play(kind: str, rng: np.random.Generator) -> Iterator[Frame]:
    """A frame before the first brick and after each one."""
    colours = [str(name) for name in rng.permutation(list(_COLOURS))[: int(rng.integers(2, 4))]]
    bricks = build(kind, colours, rng)
    ground, plate = _GROUNDS[int(rng.integers(len(_GROUNDS)))], _COLOURS[str(rng.choice(["green", "brown"]))]
    apart = bool(rng.integers(2))
    model = f"{_NAMES.get(kind, f'a {kind}')} of {' and '.join(colours)} bricks"
    about = f"{model}, taken apart brick by brick" if apart else f"{model}, built brick by brick"
    counts = range(len(bricks) + 1)
    for number, count in enumerate(reversed(counts) if apart else counts):
        text = "before the first brick"
        if number:
            brick = bricks[count] if apart else bricks[count - 1]
            where = "the plate" if brick.z == 0 else f"course {brick.z}"
            text = f"one {brick.name} is {'taken off' if apart else 'put on'} {where}"
        yield Frame(_png(draw(bricks[:count], ground, plate)), number, text=text, about=about)


def build(kind: str, colours: Sequence[str], rng: np.random.Generator) -> list[Brick]:
    """The bricks of a model, in an order in which each is supported when it comes."""
    x, y = int(rng.integers(0, 2)), int(rng.integers(2, 6))
    bricks: list[Brick] = []

    def add(x: int, y: int, z: int, width: int, depth: int) -> None:
        bricks.append(Brick(x, y, z, width, depth, colours[int(rng.integers(len(colours)))]))

    if kind == "wall":
        for z in range(int(rng.integers(3, 5))):
            for i in range(4):
                add(x + 2 * i, y, z, 2, 2)
    elif kind == "tower":
        for z in range(int(rng.integers(9, 13))):
            along = z % 2 == 0
            add(x + 3, y, z, 4 if along else 2, 2 if along else 4)
    elif kind == "stairs":
        for step in range(4):
            for z in range(step + 1):
                add(x + 2 * step, y, z, 2, 3)
    elif kind == "pyramid":
        for z in range(4):
            for i in range(4 - z):
                add(x + z + 2 * i, y, z, 2, 2)
    else:
        height = int(rng.integers(4, 6))
        for z in range(height):
            add(x, y, z, 2, 2)
            add(x + 6, y, z, 2, 2)
        add(x, y, height, 4, 2)
        add(x + 4, y, height, 4, 2)
        add(x + 2, y, height + 1, 4, 2)
    return bricks


def supported(brick: Brick, below: Sequence[Brick]) -> bool:
    """Whether the brick rests on the plate or on one of `below`, and shares no room with any."""

    def over(other: Brick) -> bool:
        return (
            brick.x < other.x + other.width
            and other.x < brick.x + brick.width
            and brick.y < other.y + other.depth
            and other.y < brick.y + brick.depth
        )

    free = not any(other.z == brick.z and over(other) for other in below)
    return free and (brick.z == 0 or any(other.z == brick.z - 1 and over(other) for other in below))


Colour = tuple[int, int, int]


def draw(bricks: Sequence[Brick], ground: Colour, plate: Colour) -> Image.Image:
    """An isometric picture of SIDE x SIDE pixels, far bricks first."""
    image = Image.new("RGB", (SIDE, SIDE), ground)
    canvas = ImageDraw.Draw(image)
    _box(canvas, 0, 0, -0.3, PLATE, PLATE, 0.3, plate)
    # A brick hides those behind it and below it: courses from the ground, each from the far corner.
    for brick in sorted(bricks, key=lambda brick: (brick.z, brick.x + brick.y)):
        colour = _COLOURS[brick.colour]
        _box(canvas, brick.x, brick.y, brick.z, brick.width, brick.depth, 1, colour)
        for stud_x in range(brick.width):
            for stud_y in range(brick.depth):
                left, top = _at(brick.x + stud_x + 0.5, brick.y + stud_y + 0.5, brick.z + 1)
                canvas.ellipse(
                    (left - 6, top - 6, left + 6, top + 1), _shade(colour, 1.1), outline=_shade(colour, 0.6)
                )
    return image


def _at(x: float, y: float, z: float) -> tuple[float, float]:
    return SIDE / 2 + (x - y) * STUD, SIDE / 2 - 20 + (x + y) * STUD / 2 - z * COURSE


def _box(
    canvas: ImageDraw.ImageDraw,
    x: float,
    y: float,
    z: float,
    width: float,
    depth: float,
    height: float,
    colour: Colour,
) -> None:
    top, low = z + height, z
    far_x, far_y = x + width, y + depth
    faces = (
        ([_at(x, far_y, low), _at(far_x, far_y, low), _at(far_x, far_y, top), _at(x, far_y, top)], 0.8),
        ([_at(far_x, y, low), _at(far_x, far_y, low), _at(far_x, far_y, top), _at(far_x, y, top)], 0.6),
        ([_at(x, y, top), _at(far_x, y, top), _at(far_x, far_y, top), _at(x, far_y, top)], 1.0),
    )
    for corners, light in faces:
        canvas.polygon(corners, _shade(colour, light), outline=_shade(colour, 0.45))


def _shade(colour: Colour, light: float) -> Colour:
    red, green, blue = (min(255, round(part * light)) for part in colour)
    return red, green, blue


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
