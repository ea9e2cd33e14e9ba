"""`tpru data view`: one HTML file that shows rows, and the parts that other pages of rows share."""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import xxhash
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tpru_verl.data import images
from tpru_verl.data.checks import problems_of_row
from tpru_verl.data.source.forms import Form, Source, Unit
from tpru_verl.data.source.parts import Part
from tpru_verl.data.source.rows import Row, is_missing, read_rows
from tpru_verl.data.work import each_unit
from tpru_verl.files import write_text
from tpru_verl.sample import IMAGE_TAG, Task, option_spans, parse_options
from tpru_verl.terminal import line_of, percent

LEAST_THUMBNAIL = 16  # pixels
ENLARGED = 96  # pixels: images no larger are shown twice as large, unsmoothed
LARGE = 2  # times as many pixels a side are kept for a picture in large
QUALITY = 85  # of the thumbnails; colours at full resolution, as many pictures are drawn or of screens
CAPTION = 24  # characters between two images that are no text of its own
UNNAMED_TASK, UNNAMED_SCENE = "not recognised", "not named"

_CAPTION = re.compile(
    r"(.*?)(?<!\w)((?:frame|step|image|picture|photo|figure) ?\d+) ?[:.]", re.DOTALL | re.IGNORECASE
)

_MARKER = re.compile(r"\(?[A-Z][.):]\s*$")  # of the first option, before its text
_SEPARATORS = " \t\n\r,;"

Place = tuple[str, int]  # a row's file and its number in it
Drawn = tuple[int, Place]  # its key, which is random but for the seed; the smallest ones are shown


@dataclass(frozen=True)
class Picture:
    uri: str
    width: int  # pixels on the page
    height: int
    enlarged: bool


@dataclass(frozen=True)
class Piece:
    """Part of a text and the image that follows it; None after the last part, or for an unusable image."""

    text: str
    caption: str = ""
    tagged: bool = False  # whether there is an image tag
    picture: Picture | None = None


@dataclass(frozen=True)
class ShownText:
    """A row's text with its pictures, as the macro `row_of` of rows.jinja shows it."""

    question: list[Piece]
    options: dict[str, list[Piece]]  # letter -> pieces
    rest: list[Piece]  # after the options

    @property
    def pictured(self) -> bool:
        """Whether there are options that are images."""
        return any(piece.tagged for pieces in self.options.values() for piece in pieces)


@dataclass(frozen=True)
class _ShownRow(ShownText):
    """A row of the page. Where `reasons` says why the row is unusable, no piece has a picture."""

    task: str
    scene: str
    id: str
    file: str
    number: int
    answer: str
    reasons: list[str]


def write_gallery(
    source: Source,
    out: Path,
    *,
    limit: int = 200,
    seed: int = 0,
    thumbnail: int = 224,
    workers: int | None = None,
) -> Path:
    """Write `limit` rows of `source` to `out`, one HTML file that holds all that it shows, and return `out`.

    Rows are drawn by `seed`, as many of each task as there are while they last, and shown in the order of
    the source; the same arguments give the same bytes. Images become JPEG of at most `thumbnail` pixels a
    side. An unusable row is shown with the reason instead of its images.

    Raises ValueError for a `limit` or `thumbnail` that is too small and where a file itself is broken; an
    `out` that exists is then left as it was.
    """
    if limit < 1:
        raise ValueError(f"limit: found {limit}, expected 1 row or more")
    if thumbnail < LEAST_THUMBNAIL:
        raise ValueError(f"thumbnail: found {thumbnail}, expected {LEAST_THUMBNAIL} pixels or more")
    totals, places = _draw(source, limit, seed, workers)
    rows = _read(source, places, thumbnail, workers)
    html = _render(source, rows, totals, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html)
    return out


def _draw(
    source: Source, limit: int, seed: int, workers: int | None
) -> tuple[dict[str, int], frozenset[Place]]:
    """How many rows of each task there are, and where those are that were drawn."""
    totals: Counter[str] = Counter()
    drawn: dict[str, list[Drawn]] = {}
    work = partial(draw_unit, limit=limit, seed=seed)
    for _, found in each_unit(source, work, title="Drawing rows", workers=workers):
        for task, (count, smallest) in found.items():
            totals[task] += count
            drawn[task] = heapq.nsmallest(limit, [*drawn.get(task, []), *smallest])
    if not totals:
        raise ValueError(f"{source.name}: found 0 rows, expected at least 1")
    shares = _shares(totals, limit)
    places = frozenset(place for task, share in shares.items() for _, place in drawn[task][:share])
    return {task: totals[task] for task in (*(task.value for task in Task), UNNAMED_TASK)}, places


def draw_unit(unit: Unit, form: Form, *, limit: int, seed: int) -> dict[str, tuple[int, list[Drawn]]]:
    """Task -> how many rows of it a unit has, and the `limit` ones of them that would be shown first."""
    if form.kind != "vlmevalkit":  # where the number of images shapes the question
        form = replace(form, images=form.problem)  # pictures are most of a file, and not looked at here
    keys: dict[str, list[Drawn]] = {}
    for row in read_rows(unit, form):
        # By what a row is called, so that the file may move without another draw.
        key = xxhash.xxh3_64_intdigest(f"{seed} {row.row_id} {row.number}".encode(errors="replace"))
        keys.setdefault(_task(row), []).append((key, (row.file, row.number)))
    return {task: (len(drawn), heapq.nsmallest(limit, drawn)) for task, drawn in keys.items()}


def _shares(totals: Mapping[str, int], limit: int) -> dict[str, int]:
    """How many of `limit` rows each task gets: equally many, where it has them."""
    shares: dict[str, int] = {}
    for i, (task, total) in enumerate(sorted(totals.items(), key=lambda item: (item[1], item[0]))):
        shares[task] = min(total, (limit - sum(shares.values())) // (len(totals) - i))
    return shares


def _read(source: Source, places: frozenset[Place], side: int, workers: int | None) -> list[_ShownRow]:
    """The rows at `places`, in the order of the source; only units that have one are read."""
    names = _names(source.parts)
    numbers: dict[str, list[int]] = {}
    for file, number in places:
        numbers.setdefault(file, []).append(number)
    units = [
        unit
        for unit in source.units
        if any(
            unit.first <= number and (unit.rows is None or number < unit.first + unit.rows)
            for number in numbers.get(unit.part.name, [])
        )
    ]
    work = partial(show_unit, places=places, side=side)
    parts = each_unit(replace(source, units=units), work, title="Making thumbnails", workers=workers)
    return [replace(row, file=names[row.file]) for _, rows in parts for row in rows]


def _names(parts: list[Part]) -> dict[str, str]:
    """What the page calls each part: its path below the folder that all have in common."""
    folders = [part.folder for part in parts if part.folder]
    root = os.path.commonpath(folders) if folders else ""
    return {part.name: str(part.path.relative_to(root)) if part.path else part.name for part in parts}


def show_unit(unit: Unit, form: Form, *, places: frozenset[Place], side: int) -> list[_ShownRow]:
    """Those rows of a unit that are at `places`, images as thumbnails of at most `side` pixels."""
    return [_show(row, side) for row in read_rows(unit, form) if (row.file, row.number) in places]


def _show(row: Row, side: int) -> _ShownRow:
    reasons, pictures = list(problems_of_row(row)), list[Picture]()
    if not reasons:
        try:
            pictures = [picture_of(data, side, kept=LARGE * side) for data in row.images()]
        except Exception as error:  # beyond its header a file may be broken in ways of many kinds
            reasons.append(
                f"images: found one that can't be decoded ({line_of(error)}), expected a whole one"
            )
            pictures.clear()
    return _ShownRow(
        **vars(shown_text(row.problem if isinstance(row.problem, str) else "", pictures)),
        task=_task(row),
        scene=row.field("scene") or UNNAMED_SCENE,
        id=row.row_id,
        file=row.file,
        number=row.number,
        answer="" if is_missing(row.answer) else str(row.answer).strip(),
        reasons=reasons,
    )


def _task(row: Row) -> str:
    try:
        return row.task.value if row.task else UNNAMED_TASK
    except ValueError:  # a name that is none, for which the row is unusable
        return UNNAMED_TASK


def picture_of(data: bytes, side: int, *, kept: int = 0) -> Picture:
    """A picture of at most `side` pixels a side on the page, of `kept` where it is shown in large."""
    small, buffer = images.thumbnail(data, max(side, kept)), io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    enlarged = max(small.size) <= ENLARGED
    scale = 2 if enlarged else min(1, side / max(small.size))
    uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(uri, max(1, round(scale * small.width)), max(1, round(scale * small.height)), enlarged)


def shown_text(
    problem: str, pictures: Iterable[Picture | None], options: Mapping[str, str] | None = None
) -> ShownText:
    """The text of a row with one picture for each image tag; `options` as for `cut`."""
    question, texts, rest = cut(problem, options)
    remaining = iter(pictures)
    return ShownText(
        pieces_of(question, remaining),
        {letter: pieces_of(text, remaining) for letter, text in texts.items()},
        pieces_of(rest, remaining),
    )


def cut(problem: str, options: Mapping[str, str] | None = None) -> tuple[str, dict[str, str], str]:
    """Question, options (letter -> text) and what follows them.

    The options are those given, else those of `parse_options`. Every image tag is in one of the three, in
    the order of the text.
    """
    known = parse_options(problem) if options is None else options
    spans = option_spans(problem, known)
    if not spans:
        return problem, {}, ""
    marker = _MARKER.search(problem[: spans[0][0]])
    texts = {letter: problem[start:end] for letter, (start, end) in zip(known, spans, strict=True)}
    return problem[: marker.start() if marker else 0], texts, problem[spans[-1][1] :].lstrip(_SEPARATORS)


def pieces_of(text: str, pictures: Iterator[Picture | None]) -> list[Piece]:
    """Cut a text at its tags; "Step 1:" before one, or few words between two, become the caption of one."""
    *stretches, rest = text.split(IMAGE_TAG)
    pieces: list[Piece] = []
    for stretch in stretches:
        words, caption = stretch.strip(), ""
        if captioned := _CAPTION.fullmatch(words):
            words, caption = captioned.groups()
        elif pieces and len(words) <= CAPTION:
            words, caption = "", words.rstrip(" :")
        pieces.append(Piece(words.strip(), caption, True, next(pictures, None)))
    return [*pieces, Piece(rest.strip())] if rest.strip() else pieces


def _render(source: Source, rows: list[_ShownRow], totals: Mapping[str, int], seed: int) -> str:
    tasks, scenes = Counter(row.task for row in rows), Counter(row.scene for row in rows)
    of_files = source.parts[0].path is not None
    return (
        page_environment()
        .get_template("gallery.html.jinja")
        .render(
            source=Path(source.name).name or source.name if of_files else source.name,
            rows=rows,
            total=sum(totals.values()),
            seed=seed,
            tasks={task: (tasks[task], total) for task, total in totals.items() if total},
            scenes=dict(sorted(scenes.items())),
            unusable=sum(bool(row.reasons) for row in rows),
        )
    )


def page_environment(*folders: Path) -> Environment:
    """Renders pages from the templates in `folders` and in this folder, such as `rows.jinja`."""
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = {"number": "{:,}".format, "percent": percent, "words": _sentence, "sha256": sha256}
    environment.filters |= written
    return environment


def _sentence(name: str) -> str:
    return name.replace("_", " ").capitalize()


def sha256(text: str) -> str:
    """The hash by which a Content-Security-Policy allows one script to run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
