"""Draw docs/picture.png for the README: two rows of `tpru build sim:bricks` beside what the demo gained.

    python docs/picture.py

The accuracies are those of the table in docs/demo.md.
"""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pyarrow.parquet as pq
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from pictures import tpru
from PIL import Image

from tpru_verl.files import write_bytes
from tpru_verl.sample import IMAGE_TAG, parse_options

HERE = Path(__file__).parent
PICTURE = HERE / "picture.png"
ROWS = ("bricks-0-000001/temporal_reordering/0", "bricks-0-000003/next_frame_prediction/0")
WIDTH, HEIGHT, DPI = 15.0, 6.2, 110  # inches, pixels an inch
INK, GREY, LINE, RIGHT, BLUE = "#1f2328", "#59636e", "#d1d9e0", "#1a7f37", "#0969da"
TILE = 0.078  # width of a frame, as a share of the picture


def accuracies() -> list[list[float]]:
    """Accuracy, and its interval's two ends, in percent: before, and after training with each seed."""
    (row,) = re.findall(r"^\| all tasks \|.*", (HERE / "demo.md").read_text(), re.MULTILINE)
    return [
        [float(value) for value in re.findall(r"\d+\.\d", cell)] for cell in row.strip("| ").split("|")[1:]
    ]


def built_rows() -> list[dict[str, Any]]:
    """The rows named in ROWS, made by `tpru build`."""
    with tempfile.TemporaryDirectory() as folder:
        tpru("build", "sim:bricks", f"{folder}/rows", "--episodes", 4, "--no-audit")
        rows = pq.read_table(f"{folder}/rows/data").to_pylist()
    by_id = {row["extra_info"]["row_id"]: row for row in rows}
    return [by_id[name] for name in ROWS]


def frame(figure: Figure, left: float, bottom: float, data: bytes, label: str, colour: str) -> None:
    """One frame with its label below; its lower left corner is at (left, bottom)."""
    axes = figure.add_axes((left, bottom, TILE, TILE * WIDTH / HEIGHT))
    axes.imshow(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set(color=colour, linewidth=3 if colour == RIGHT else 0.8)
    weight = "bold" if colour == RIGHT else "normal"
    axes.set_xlabel(label, color=GREY if colour == LINE else colour, fontsize=11, weight=weight, labelpad=4)


def reordering(figure: Figure, row: dict[str, Any], top: float) -> None:
    figure.text(0.025, top, "Put the frames in order", fontsize=14, weight="bold", color=INK)
    for number, image in enumerate(row["images"]):
        left = 0.025 + number * (TILE + 0.008)
        frame(figure, left, top - 0.255, image["bytes"], f"Image {number + 1}", LINE)
    for place, (letter, text) in enumerate((parse_options(row["problem"]) or {}).items()):
        right = letter == row["answer"]
        figure.text(
            0.025 + 4 * (TILE + 0.008) + 0.012,
            top - 0.085 - place * 0.042,
            f"{letter}.  {text.replace('None of the choices provided', 'None of these')}",
            fontsize=12.5,
            color=RIGHT if right else GREY,
            weight="bold" if right else "normal",
        )


def next_frame(figure: Figure, row: dict[str, Any], top: float) -> None:
    figure.text(0.025, top, "Find step 3 between steps 2 and 4", fontsize=14, weight="bold", color=INK)
    given, *options = row["problem"].split("\nA. ")
    images = iter(row["images"])
    for place, step in enumerate(("Step 1", "Step 2", "Step 4")):
        frame(figure, 0.025 + place * (TILE + 0.008), top - 0.255, next(images)["bytes"], step, LINE)
    assert given.count(IMAGE_TAG) == 3
    letters = [line.partition(".")[0] for line in f"A. {options[0]}".splitlines() if IMAGE_TAG in line]
    assert letters == list("ABCD")  # E is "None of the choices provided", and is not drawn
    for place, letter in enumerate(letters):
        colour = RIGHT if letter == row["answer"] else LINE
        left = 0.025 + 0.022 + (3 + place) * (TILE + 0.008)
        frame(figure, left, top - 0.255, next(images)["bytes"], letter, colour)


def gains(axes: Axes) -> None:
    """Held-out accuracy before and after, with 95 % intervals."""
    before, *after = accuracies()
    names = ["before", *(f"after,\nseed {seed}" for seed in range(1, len(after) + 1))]
    for place, (value, low, high) in enumerate((before, *after)):
        colour = BLUE if place else GREY
        axes.bar(place, value, color=colour, alpha=0.85, width=0.62)
        axes.plot((place, place), (low, high), color=INK, linewidth=1.4)
        axes.text(place, high + 1.5, f"{value:.1f} %", ha="center", color=INK, fontsize=12)
    axes.axhline(20, color=INK, linewidth=1, linestyle=":")
    axes.text(-0.29, 21, "chance", color="white", fontsize=10)
    axes.set_xticks(range(len(names)), names, fontsize=11)
    axes.set_yticks([])
    axes.set_ylim(0, 86)
    axes.tick_params(colors=GREY, length=0)
    for name, side in axes.spines.items():
        side.set_visible(name == "bottom")
        side.set_color(LINE)


def draw() -> bytes:
    figure = pyplot.figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="none")
    card = FancyBboxPatch(
        (0.004, 0.008),
        0.992,
        0.984,
        boxstyle="round,pad=0,rounding_size=0.012",
        facecolor="white",
        edgecolor=LINE,
        transform=figure.transFigure,
        zorder=-1,
    )
    figure.add_artist(card)
    one, two = built_rows()
    reordering(figure, one, 0.9)
    next_frame(figure, two, 0.44)
    below = "Rows of  tpru build sim:bricks,  the right answer in green"
    figure.text(0.025, 0.045, below, color=GREY, fontsize=11)
    gains(figure.add_axes((0.69, 0.2, 0.285, 0.64)))
    figure.text(0.69, 0.9, "Right answers in make demo", fontsize=14, weight="bold", color=INK)
    figure.text(
        0.69, 0.045, "1,000 new rows; a tiny model, trained on two CPU cores", color=GREY, fontsize=11
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    small = io.BytesIO()
    Image.open(buffer).quantize(256).save(small, "PNG", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    write_bytes(PICTURE, draw())
