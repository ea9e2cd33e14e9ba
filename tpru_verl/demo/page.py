"""The demo's reward curve and its page: one HTML file that holds all that it shows, pictures too."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tpru_verl.data.view import page_environment
from tpru_verl.demo.evaluate import Score
from tpru_verl.files import write_bytes, write_text
from tpru_verl.sample import IMAGE_TAG

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REWARD = "critic/score/mean"
CORRELATION = "training/rollout_actor_probs_pearson_corr"
LEAST_CORRELATION = 0.95
WINDOW = 11  # steps that the smoothed curve averages over, the step itself in the middle

# (right before, right after) -> what became of a row, in the order in which the page shows them.
OUTCOMES = {
    (False, True): "newly right",
    (True, True): "still right",
    (False, False): "still wrong",
    (True, False): "newly wrong",
}

_ACCURACY = re.compile(r"val-core/(?:.*/)?([^/]+)/acc/mean@\d+")
_OPTION = re.compile(r"(?<!\S)([A-E])\.\s*")
_CAPTION = re.compile(r"(.*?)((?:Frame|Step) \d+):", re.DOTALL)
_ENLARGED = 96  # pixels: images no wider are shown three times as large


class Correlation(TypedDict):
    """Of rollout and actor probabilities, over the steps of a run."""

    min: float
    mean: float


class Summary(TypedDict):
    """summary.json: scores pooled and per task, seconds per phase, and what the run was made with."""

    before: dict[str, Score]
    after: dict[str, Score]
    seconds: dict[str, float]
    steps: int
    seed: int
    peak_memory_gib: float
    rollout_actor_correlation: Correlation
    versions: dict[str, str]


class Answer(TypedDict):
    """A line of before.jsonl and after.jsonl: one held-out row and how the model answered it."""

    id: str
    task: str
    scene: str
    problem: str
    answer: str
    response: str
    parsed: str | None
    accuracy: float
    format: float


class _Step(TypedDict):
    step: int
    data: dict[str, object]


_Line = TypeVar("_Line", Answer, _Step)


@dataclass(frozen=True)
class _Picture:
    uri: str
    width: int  # pixels on the page
    height: int


@dataclass(frozen=True)
class _Piece:
    """A stretch of a problem's text and the image that follows it, None after the last one."""

    text: str
    caption: str
    picture: _Picture | None


@dataclass(frozen=True)
class _Shown:
    """A row of the page: question and options (letter -> pieces) and both answers."""

    question: list[_Piece]
    options: dict[str, list[_Piece]]
    before: Answer
    after: Answer


@dataclass(frozen=True)
class _Group:
    """All rows with one outcome: how many there are, and those shown."""

    outcome: str
    n: int
    shown: list[_Shown]


@dataclass(frozen=True)
class _Colours:
    ground: str
    ink: str
    grid: str
    reward: str
    alarm: str
    tasks: tuple[str, ...]


# The page's own colours, light and dark.
_LIGHT = _Colours("#ffffff", "#3d4350", "#e3e6ec", "#2457c5", "#b42318", ("#b35c00", "#0f7b6c", "#8a3ffc"))
_DARK = _Colours("#1b1e25", "#c3c8d2", "#333843", "#86abff", "#ff8f80", ("#f0a860", "#5ccbb8", "#c4a1ff"))


def draw_curve(metrics: Path, png: Path) -> None:
    """Draw what veRL's file logger wrote: reward and validation accuracy above, correlation below.

    `metrics` holds {"step": N, "data": {name: number}} a line. The PNG is 1800 x 1080 pixels, made to be
    read at half that size.

    Raises ValueError where `metrics` is missing, broken or without a reward.
    """
    write_bytes(png, _curve(metrics, _LIGHT))


def write_page(out: Path, *, next_commands: Sequence[str], rows: int = 12) -> Path:
    """Write OUT/page.html from the files of a demo run in `out`, and return its path.

    Reads summary.json, metrics.jsonl, before.jsonl, after.jsonl and rows/test.parquet. Of the held-out rows
    it shows `rows`, each outcome (newly right, still wrong, ...) as often as it is among all, but at least
    once where it occurs at all.

    Raises ValueError for a missing or broken file, for answers that are not about the same rows, and for
    fewer than 4 `rows`, the number of outcomes.
    """
    if rows < len(OUTCOMES):
        raise ValueError(f"rows: found {rows}, expected {len(OUTCOMES)} or more, one for each outcome")
    summary = _summary(out / "summary.json")
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {"points": _points, "duration": _duration}
    groups = _groups(out, rows)
    html = environment.get_template("page.html.jinja").render(
        **summary,
        groups=groups,
        curve=_uri(_curve(out / "metrics.jsonl", _LIGHT), "image/png"),
        dark_curve=_uri(_curve(out / "metrics.jsonl", _DARK), "image/png"),
        least_correlation=LEAST_CORRELATION,
        next_commands=next_commands,
    )
    page = out / "page.html"
    write_text(page, html)
    return page


def _curve(metrics: Path, colours: _Colours) -> bytes:
    from matplotlib.figure import Figure

    lines = _json_lines(metrics, _Step)
    steps, rewards = _series(lines, REWARD)
    if not rewards:
        raise ValueError(f"{metrics}: found no {REWARD}, expected one a step; did the trainer take a step?")
    figure = Figure(figsize=(9, 5.4), dpi=200, facecolor=colours.ground, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for axes in (above, below):
        _dress(axes, colours)
    above.plot(steps, rewards, color=colours.reward, alpha=0.3, linewidth=1, label="reward, each step")
    smooth = _smooth(rewards)
    above.plot(steps, smooth, color=colours.reward, linewidth=2.4, label=f"reward, mean of {WINDOW} steps")
    tasks = {key: match[1] for line in lines for key in line["data"] if (match := _ACCURACY.fullmatch(key))}
    for key, colour, marker in zip(sorted(tasks), colours.tasks, "os^", strict=False):
        label = f"accuracy, {tasks[key].replace('_', ' ')}"
        above.plot(
            *_series(lines, key), color=colour, marker=marker, markersize=6, linestyle=":", label=label
        )
    above.set_ylim(0, 1)
    above.set_ylabel("mean reward" + (", held-out accuracy" if tasks else ""))
    above.legend(loc="best", fontsize=9, frameon=False, labelcolor=colours.ink)
    _draw_correlation(below, lines, colours)
    figure.align_ylabels()
    return _png(figure)


def _draw_correlation(axes: Axes, lines: list[_Step], colours: _Colours) -> None:
    steps, values = _series(lines, CORRELATION)
    axes.plot(steps, values, color=colours.reward, linewidth=1.6)
    axes.axhline(LEAST_CORRELATION, color=colours.alarm, linewidth=1.2, linestyle="--")
    low = [(step, value) for step, value in zip(steps, values, strict=True) if value < LEAST_CORRELATION]
    axes.plot([s for s, _ in low], [v for _, v in low], "x", color=colours.alarm, markersize=5)
    axes.set_ylim(min([0.93, *(value - 0.02 for value in values)]), 1.005)
    axes.set_ylabel("rollout, actor\ncorrelation")
    axes.set_xlabel("GRPO step")
    words = f"{LEAST_CORRELATION}: below it, vLLM and the trainer do not see the same"
    where = {"xy": (0.01, LEAST_CORRELATION), "xycoords": axes.get_yaxis_transform()}
    offset = {"xytext": (0, 3), "textcoords": "offset points"}
    axes.annotate(words, **where, **offset, color=colours.alarm, fontsize=8)


def _dress(axes: Axes, colours: _Colours) -> None:
    axes.set_facecolor(colours.ground)
    axes.grid(color=colours.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours.ink, labelsize=9, length=0)
    axes.xaxis.label.set_color(colours.ink)
    axes.yaxis.label.set_color(colours.ink)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colours.ink)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _series(lines: Sequence[_Step], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric where it is a finite number: the logger writes NaN as null."""
    found = [
        (line["step"], float(value))
        for line in lines
        if isinstance(value := line["data"].get(name), (int, float)) and math.isfinite(value)
    ]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over WINDOW steps around each; at the ends over those that there are."""
    half = WINDOW // 2
    return [float(np.mean(values[max(at - half, 0) : at + half + 1])) for at in range(len(values))]


def _summary(path: Path) -> Summary:
    try:
        found: Summary = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: found {error}, expected one JSON object; run the demo again") from error
    if missing := _missing(Summary, found):
        raise ValueError(f"{path}: {missing[0]}: found nothing, expected a value; run the demo again")
    return found


def _groups(out: Path, rows: int) -> list[_Group]:
    """Rows by outcome with a fair choice of them, images included."""
    before, after = (_json_lines(out / f"{name}.jsonl", Answer) for name in ("before", "after"))
    if not before or [row["id"] for row in before] != [row["id"] for row in after]:
        raise ValueError(
            f"{out / 'after.jsonl'}: id: found {len(after)} rows that are not the {len(before)} of "
            "before.jsonl in their order, expected the same; evaluate both on the same rows"
        )
    pairs: dict[str, list[tuple[Answer, Answer]]] = {outcome: [] for outcome in OUTCOMES.values()}
    for old, new in zip(before, after, strict=True):
        pairs[OUTCOMES[old["accuracy"] == 1, new["accuracy"] == 1]].append((old, new))
    shares = _shares({outcome: len(group) for outcome, group in pairs.items()}, rows)
    chosen = {outcome: _spread(group, shares[outcome]) for outcome, group in pairs.items()}
    pictures = _pictures(out / "rows/test.parquet", [old for group in chosen.values() for old, _ in group])
    return [
        _Group(outcome, len(pairs[outcome]), [_show(old, new, pictures[old["id"]]) for old, new in group])
        for outcome, group in chosen.items()
    ]


def _shares(sizes: dict[str, int], rows: int) -> dict[str, int]:
    """How many of `rows` each outcome gets: one where it occurs, the rest in proportion."""
    n = sum(sizes.values())
    shares = {outcome: min(size, 1) for outcome, size in sizes.items()}
    for _ in range(min(rows, n) - sum(shares.values())):
        shares[max(sizes, key=lambda outcome: min(rows, n) * sizes[outcome] / n - shares[outcome])] += 1
    return shares


def _spread(pairs: Sequence[tuple[Answer, Answer]], count: int) -> list[tuple[Answer, Answer]]:
    """`count` of `pairs`, evenly spaced after sorting by task, so that tasks keep their proportion, too."""
    by_task = sorted(pairs, key=lambda pair: pair[0]["task"])
    return [by_task[(2 * i + 1) * len(by_task) // (2 * count)] for i in range(count)]


def _pictures(parquet: Path, answers: Sequence[Answer]) -> dict[str, list[_Picture]]:
    """Row id -> its images."""
    if not parquet.is_file():
        raise ValueError(f"{parquet}: found no such file, expected the demo's output; run the demo again")
    wanted = [answer["id"] for answer in answers]
    try:
        table = pq.read_table(parquet, columns=["id", "images"], filters=[("id", "in", wanted)]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{parquet}: found {_line(error)}, expected columns id and images") from error
    encoded = {row["id"]: [image["bytes"] for image in row["images"]] for row in table}
    pictures: dict[str, list[_Picture]] = {}
    for answer in answers:
        row, tags = answer["id"], answer["problem"].count(IMAGE_TAG)
        if (found := len(encoded.get(row, []))) != tags:
            raise ValueError(
                f"{parquet}, row {row}: images: found {found}, expected {tags}, one for each tag"
            )
        try:
            pictures[row] = [_picture(image) for image in encoded[row]]
        except OSError as error:
            raise ValueError(f"{parquet}, row {row}: images: {_line(error)}, expected PNG or JPEG") from error
    return pictures


def _picture(image: bytes) -> _Picture:
    with Image.open(io.BytesIO(image)) as opened:
        scale = 3 if opened.width <= _ENLARGED else 1
        kind = Image.MIME[opened.format or "PNG"]
        return _Picture(_uri(image, kind), scale * opened.width, scale * opened.height)


def _show(before: Answer, after: Answer, pictures: Sequence[_Picture]) -> _Shown:
    remaining = iter(pictures)
    question, *listed = _OPTION.split(before["problem"])
    pieces = _pieces(question, remaining)
    options = {
        letter: _pieces(text, remaining) for letter, text in zip(listed[::2], listed[1::2], strict=True)
    }
    return _Shown(pieces, options, before, after)


def _pieces(text: str, pictures: Iterator[_Picture]) -> list[_Piece]:
    """Cut a text at its image tags; "Step 1:" before one becomes the caption of the image."""
    *stretches, rest = text.split(IMAGE_TAG)
    pieces: list[_Piece] = []
    for stretch in stretches:
        captioned = _CAPTION.fullmatch(stretch.strip())
        words, caption = captioned.groups() if captioned else (stretch, "")
        pieces.append(_Piece(words.strip(), caption, next(pictures)))
    return [*pieces, _Piece(rest.strip(), "", None)] if rest.strip() else pieces


def _json_lines(path: Path, form: type[_Line]) -> list[_Line]:
    """The objects of a JSON lines file, each with all fields of `form`."""
    rows: list[_Line] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: found {error}, expected a JSON object") from error
        if missing := _missing(form, row):
            raise ValueError(f"{path}, line {number}: {missing[0]}: found nothing, expected a value")
        rows.append(row)
    return rows


def _missing(form: type, found: object) -> list[str]:
    """Fields of a TypedDict that `found`, whatever it is, does not have."""
    return [key for key in form.__annotations__ if not isinstance(found, dict) or key not in found]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: {_line(error)}, expected a file of the demo; run the demo again"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _points(change: float) -> str:
    return f"{100 * change:+.1f}".replace("-", "\N{MINUS SIGN}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
