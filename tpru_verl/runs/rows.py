"""The rows that a run's responses answer: their scenes and pictures, found again in the run's data files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpru_verl.runs.places import settings_of
from tpru_verl.sample import IMAGE_TAG
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    from tpru_verl.data.source.forms import Source
    from tpru_verl.data.source.rows import Row
    from tpru_verl.data.view import ShownText
    from tpru_verl.runs.rollouts import Graded

SIDE = 224  # pixels of a thumbnail
_SEARCHES = 20  # through all rows, for prompts that are wrapped otherwise than those before

Place = tuple[str, int]  # a row's file and its number in it


@dataclass(frozen=True)
class KnownRow:
    place: Place
    id: str
    scene: str
    source: str  # what it was cut from


class RunRows:
    """The rows of a run's data files, found by the id or place that our plugin dumps, else by their text.

    Stock veRL and EasyR1 name no row. The text of a prompt without images and spaces holds that of its row;
    several rows may have the same text and answer, and are then not told apart.
    """

    def __init__(self, settings: Mapping[str, Any], started_in: Path | None = None) -> None:
        self.notes: list[str] = []
        self._sources: list[Source] = []
        self._by_text: dict[tuple[str, str], list[KnownRow]] = {}
        self._by_name: dict[str, list[KnownRow]] = {}
        self._wraps: list[tuple[str, str]] = []  # what stands before and after a row's text in a prompt
        self._searches = _SEARCHES
        if not settings:
            self.notes.append("no recipe beside the metrics: rows, scenes and pictures are not known")
            return
        for name, keys in _data_files(settings):
            try:
                self._read(_found(name, started_in), keys)
            except (OSError, ValueError) as error:
                self.notes.append(f"{line_of(error)}: rows of this file are shown without scene and pictures")

    def _read(self, name: str, keys: Any) -> None:
        from tpru_verl.data.source.forms import Source
        from tpru_verl.data.source.rows import read_rows

        source = Source.open(name, keys=keys)
        self._sources.append(source)
        for unit in source.units:
            form = source.form(unit)
            if form.kind != "vlmevalkit":
                form = replace(
                    form, images=form.problem
                )  # pictures are most of a file, and not looked at here
            for row in read_rows(unit, form):
                known = KnownRow((row.file, row.number), row.row_id, row.field("scene"), row.source_id)
                for name in {known.id, row.place}:
                    self._by_name.setdefault(name, []).append(known)
                key = _squeezed(str(row.problem)), str(row.answer).strip()
                self._by_text.setdefault(key, []).append(known)

    def find(self, answer: Graded) -> KnownRow | None:
        """The row that a response answers; None where it is not known, or is one of several."""
        found = self.candidates(answer)
        return found[0] if len(found) == 1 else None

    def candidates(self, answer: Graded) -> list[KnownRow]:
        """The rows that a response may answer."""
        if named := self._by_name.get(answer.row):
            return named
        text = _squeezed(answer.prompt)
        return self._named(text, answer.answer) or self._searched(text, answer.answer)

    def _named(self, text: str, answer: str) -> list[KnownRow]:
        for before, after in self._wraps:
            if text.startswith(before) and text.endswith(after):
                middle = text[len(before) : len(text) - len(after)]
                if found := self._by_text.get((middle, answer)):
                    return found
        return []

    def _searched(self, text: str, answer: str) -> list[KnownRow]:
        if self._searches == 0:
            return []
        self._searches -= 1
        best = max(
            (key for key in self._by_text if key[0] and key[1] == answer and key[0] in text),
            key=lambda key: len(key[0]),
            default=None,
        )
        if best is None:
            return []
        before, _, after = text.partition(best[0])
        self._wraps.append((before, after))
        return self._by_text[best]

    def shown(self, places: Iterable[Place]) -> dict[Place, ShownText]:
        """Text and pictures of rows, for the macro `row_of` of the gallery; unreadable ones are left out."""
        from tpru_verl.data.source.rows import read_rows

        wanted = set(places)
        found: dict[Place, ShownText] = {}
        for source in self._sources:
            for unit in source.units:
                if not any(_holds(unit, place) for place in wanted):
                    continue
                for row in read_rows(unit, source.form(unit)):
                    if (row.file, row.number) in wanted:
                        found[row.file, row.number] = _shown(row)
        return found


def _holds(unit: Any, place: Place) -> bool:
    file, number = place
    inside = unit.first <= number and (unit.rows is None or number < unit.first + unit.rows)
    return unit.part.name == file and inside


def _shown(row: Row) -> ShownText:
    from tpru_verl.data.view import picture_of, shown_text

    try:
        pictures = [picture_of(image, SIDE) for image in row.images()]
    except Exception:  # a picture may be broken in ways of many kinds, and its place stays empty
        pictures = []
    return shown_text(str(row.problem), pictures)


def _squeezed(text: str) -> str:
    return "".join(text.replace(IMAGE_TAG, "").split())


def _found(name: str, started_in: Path | None) -> str:
    """A relative path as it was meant where the run was started."""
    path = name.partition("@")[0]  # FOLDER@SPLIT
    if started_in is None or Path(path).exists() or not (started_in / path).exists():
        return name
    return str(started_in / name)


def _data_files(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The run's training and validation files with the names of their columns."""
    read = settings_of(settings)
    names = dict.fromkeys(name for key in ("train_files", "val_files") for name in read.files(key) if name)
    return [(name, read.row_keys) for name in names]
