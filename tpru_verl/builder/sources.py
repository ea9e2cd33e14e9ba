"""What a source holds: videos, folders of pictures, episodes in a jsonl file, LeRobot data, simulators."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from tpru_verl.builder import video
from tpru_verl.builder.clips import Frame, SourceItem
from tpru_verl.builder.names import in_order
from tpru_verl.data.source.cells import image_bytes

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ABOUT = "description.txt"  # beside pictures: what they show
SIMULATED = "sim:"  # SOURCE of a simulator, as in sim:minigrid


@dataclass(frozen=True)
class _Below:
    """Something below `root`, or `root` itself, named by its relative path."""

    root: Path
    path: Path

    @property
    def id(self) -> str:
        return self.path.relative_to(self.root).as_posix() if self.path != self.root else self.path.name

    @property
    def scene(self) -> str:
        """The topmost folder below the source, or the source's own name."""
        parts = self.path.relative_to(self.root).parts
        return parts[0] if len(parts) > 1 else self.root.name

    @property
    def group(self) -> str:
        """The two topmost parts: what lies in one folder of a scene was taken together."""
        parts = self.path.relative_to(self.root).parts
        return "/".join(parts[:2]) if parts else self.path.name

    def _inside(self) -> Path:
        """`path`, which a link may lead out of `root`: then ValueError."""
        if not self.path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f"{self.path}: found a link that leaves {self.root}, expected a path inside it")
        return self.path


@dataclass(frozen=True)
class Video(_Below):
    """A video file."""

    usual_frames: ClassVar[int] = 64
    sampling: video.FrameSampling

    def frames(self) -> Iterator[Frame]:
        return video.frames_of(self._inside(), self.sampling)


@dataclass(frozen=True)
class Pictures(_Below):
    """A folder of pictures in the order of their names, 2 before 10; bytes stay as they are."""

    usual_frames: ClassVar[int] = 4

    def frames(self) -> Iterator[Frame]:
        text = self._inside() / ABOUT
        about = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
        names = [path.name for path in self.path.iterdir() if path.suffix.lower() in PICTURES]
        try:
            names = in_order(names)
        except ValueError as error:
            raise ValueError(f"{self.id}: {error}") from error
        for number, path in enumerate(self.path / name for name in names):
            try:
                data = image_bytes(path.relative_to(self.root).as_posix(), self.root)
            except ValueError as error:
                raise ValueError(f"{self.id}: {error}") from error
            yield Frame(data, number, about=about)


@dataclass(frozen=True)
class JsonEpisode:
    """An episode: one line of a jsonl file, read when it is needed."""

    usual_frames: ClassVar[int] = 4
    path: Path
    number: int
    offset: int

    @cached_property
    def _record(self) -> Mapping[str, object]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            text = file.readline()
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{self.name}: not readable as json: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{self.name}: found {type(record).__name__}, expected an object")
        return record

    @property
    def name(self) -> str:
        return f"{self.path.name} line {self.number + 1}"

    def _text(self, field: str, otherwise: str = "") -> str:
        value = self._record.get(field)
        if value is not None and not isinstance(value, (str, int)):
            raise ValueError(f"{self.name}: {field}: found {type(value).__name__}, expected text")
        return otherwise if value in (None, "") else str(value)

    @property
    def id(self) -> str:
        return self._text("id", f"{self.path.name}:{self.number}")

    @property
    def scene(self) -> str:
        return self._text("scene", self.path.stem)

    @property
    def group(self) -> str:
        return self._text("source_id", self.id)

    def frames(self) -> Iterator[Frame]:
        images, texts = self._record.get("images"), self._record.get("texts") or []
        if not isinstance(images, list):
            raise ValueError(f"{self.name}: images: found {type(images).__name__}, expected a list of paths")
        if not isinstance(texts, list) or (texts and len(texts) != len(images)):
            found = len(texts) if isinstance(texts, list) else type(texts).__name__
            raise ValueError(
                f"{self.name}: texts: found {found}, expected one for each of {len(images)} images"
            )
        about = self._text("text")
        for number, cell in enumerate(images):
            try:
                data = image_bytes(cell, self.path.parent)
            except ValueError as error:
                raise ValueError(f"{self.name}: images[{number}]: {error}") from error
            yield Frame(data, number, text=str(texts[number]) if texts else "", about=about)


def items_of(
    source: str, sampling: video.FrameSampling, *, episodes: int = 100, seed: int = 0
) -> list[SourceItem]:
    """The items of a source, in an order that does not depend on the machine.

    `episodes` and `seed` are for simulators. Raises FileNotFoundError or ValueError where there are none.
    """
    if source.startswith(SIMULATED):
        from tpru_verl.builder.sims import episodes_of

        return [*episodes_of(source.removeprefix(SIMULATED), episodes, seed)]
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix == ".jsonl":
            return [*_lines(path)]
        if path.suffix.lower() in video.SUFFIXES:
            return [Video(path.parent, path, sampling)]
        raise ValueError(f"{source}: found {path.suffix or 'no suffix'!r}, expected .jsonl or a video")
    if not path.is_dir():
        raise FileNotFoundError(f"{source}: no such file or folder; a simulator is named as in sim:bricks")
    if (path / "meta" / "info.json").is_file():
        from tpru_verl.builder.lerobot import episodes_of as recorded

        return [*recorded(path, sampling)]
    found = [*_below(path, sampling)]
    if not found:
        kinds = ", ".join((*video.SUFFIXES, *PICTURES))
        raise FileNotFoundError(f"{source}: found no file that ends in {kinds}")
    return found


def _below(root: Path, sampling: video.FrameSampling) -> Iterator[SourceItem]:
    """Videos, and folders that hold pictures, at any depth."""
    folders: set[Path] = set()
    for path in sorted(root.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(root).parts) or not path.is_file():
            continue
        if path.suffix.lower() in video.SUFFIXES:
            yield Video(root, path, sampling)
        elif path.suffix.lower() in PICTURES and path.parent not in folders:
            folders.add(path.parent)
            yield Pictures(root, path.parent)


def _lines(path: Path) -> Iterator[JsonEpisode]:
    offset, found = 0, 0
    with path.open("rb") as file:
        for number, text in enumerate(file):
            if text.strip():
                yield JsonEpisode(path, number, offset)
                found += 1
            offset += len(text)
    if not found:
        raise ValueError(f"{path}: found an empty file, expected episodes")
