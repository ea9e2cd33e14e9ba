"""The items of a source: videos, picture folders, episodes of a json file, recordings, simulators."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import filterfalse
from pathlib import Path
from typing import ClassVar

from tpru_verl.builder import video
from tpru_verl.builder.clips import Frame, SourceItem, Unusable
from tpru_verl.builder.crop import Cover, Covered
from tpru_verl.builder.pictures import CONVERTED
from tpru_verl.data.source.cells import image_bytes
from tpru_verl.data.source.names import COMMON, in_order, is_system_file
from tpru_verl.data.source.parts import is_local
from tpru_verl.terminal import OptionError, line_of

PICTURES = (*COMMON, *CONVERTED)
ABOUT = "description.txt"  # describes the pictures beside it
MOST_ABOUT = 2**16  # bytes that are read of it
# How the summary counts what could not be read: these, or the suffix of a file.
PICTURE_FOLDERS, EPISODES = "in folders of pictures", "in episodes"
LINKS, FOLDERS, NO_SUFFIX = "in links to folders", "in folders that cannot be read", "without a suffix"
WITH_FRAMES = (PICTURE_FOLDERS, EPISODES, FOLDERS, *video.SUFFIXES)  # those that frames were expected of
SIMULATED = "sim:"  # SOURCE of a simulator, as in sim:minigrid


@dataclass(frozen=True)
class _Below:
    """A file or folder below `root`, or `root` itself. Its relative path is its id."""

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
        """The two topmost parts of the path: items in one folder of a scene belong together."""
        parts = self.path.relative_to(self.root).parts
        return "/".join(parts[:2]) if parts else self.path.name

    def _inside(self, path: Path) -> Path:
        """`path`. Raises ValueError where a link leads out of `root`."""
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f"{path}: found a link that leaves {self.root}, expected a path inside it")
        return path


@dataclass(frozen=True)
class Video(_Below):
    """A video file."""

    usual_frames: ClassVar[int] = 64
    sampling: video.FrameSampling

    @property
    def kind(self) -> str:
        return self.path.suffix.lower()

    def files(self) -> Sequence[Path]:
        return [self.path]

    def frames(self) -> Iterator[Frame]:
        return video.frames_of(self._inside(self.path), self.sampling)


@dataclass(frozen=True)
class Pictures(_Below):
    """A folder of pictures, in the order that the numbers in their names give."""

    usual_frames: ClassVar[int] = 4
    kind: ClassVar[str] = PICTURE_FOLDERS
    every: int = 1  # the first of so many pictures is read

    def files(self) -> Sequence[Path]:
        return sorted(path for path in self._inner() if is_picture(path.name) or path.name == ABOUT)

    def frames(self) -> Iterator[Frame]:
        about = self._about()
        names = [name for path in self._inner() if is_picture(name := path.name)]
        try:
            names = in_order(names)
        except ValueError as error:
            raise ValueError(f"{self.id}: {error}") from error
        for number, path in [*enumerate(self.path / name for name in names)][:: self.every]:
            try:
                data = image_bytes(path.relative_to(self.root).as_posix(), self.root)
            except ValueError as error:
                raise ValueError(f"{self.id}: {error}") from error
            yield Frame(data, number, about=about, name=path.name)

    def _inner(self) -> Iterator[Path]:
        """What the folder holds, without folders, which are items of their own: `9.jpg`, too."""
        return (path for path in self.path.iterdir() if not path.is_dir())

    def _about(self) -> str:
        path = self._inside(self.path) / ABOUT
        if not path.exists():
            return ""
        with self._inside(path).open("rb") as file:
            data = file.read(MOST_ABOUT + 1)
        if len(data) > MOST_ABOUT:
            raise ValueError(f"{self.id}: {ABOUT}: found over {MOST_ABOUT} bytes, expected a sentence")
        try:
            return data.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.id}: {ABOUT}: found bytes that are not UTF-8, expected text") from error


@dataclass(frozen=True)
class JsonEpisode:
    """An episode: one line of a jsonl file, or one object of a json file. It is read on first use."""

    usual_frames: ClassVar[int] = 4
    path: Path
    number: int
    offset: int | None  # of its line; None in a json file
    every: int = 1  # the first of so many pictures is read

    @cached_property
    def _record(self) -> Mapping[str, object]:
        return self._read()

    def _read(self) -> Mapping[str, object]:
        if self.offset is None:
            record = _listed(self.path, self.path.stat().st_mtime_ns)[self.number]
        else:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                text = file.readline()
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self.name}: not readable as json: {line_of(error)}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{self.name}: found {type(record).__name__}, expected an object")
        return record

    @property
    def name(self) -> str:
        """As messages call it: its default id, which counts from 0, and the line or the place in the list."""
        kind = "line" if self.offset is not None else "episode"
        return f"{self._own_id} ({kind} {self.number + 1})"

    @property
    def _own_id(self) -> str:
        return f"{self.path.name}:{self.number}"

    def _text(self, field: str, otherwise: str = "") -> str:
        value = self._record.get(field)
        if value is not None and not isinstance(value, (str, int)):
            raise ValueError(f"{self.name}: {field}: found {type(value).__name__}, expected text")
        return otherwise if value in (None, "") else str(value)

    @property
    def id(self) -> str:
        return self._text("id", self._own_id)

    @property
    def scene(self) -> str:
        return self._text("scene", self.path.stem)

    @property
    def group(self) -> str:
        return self._text("source_id", self.id)

    def files(self) -> Sequence[Path]:
        images = self._read().get("images")  # not kept: all episodes of a source are asked, one after another
        cells = images if isinstance(images, list) else ()
        names = [cell.get("path") if isinstance(cell, Mapping) else cell for cell in cells]
        return [self.path, *(self.path.parent / name for name in names if isinstance(name, str))]

    def frames(self) -> Iterator[Frame]:
        images, texts = self._record.get("images"), self._record.get("texts") or []
        if not isinstance(images, list):
            found = "no images" if images is None else type(images).__name__
            raise ValueError(f"{self.name}: images: found {found}, expected a list of paths")
        if not isinstance(texts, list) or (texts and len(texts) != len(images)):
            found = len(texts) if isinstance(texts, list) else type(texts).__name__
            raise ValueError(
                f"{self.name}: texts: found {found}, expected one for each of {len(images)} images"
            )
        about = self._text("text")
        for number, cell in [*enumerate(images)][:: self.every]:
            try:
                data = image_bytes(cell, self.path.parent)
            except ValueError as error:
                raise ValueError(f"{self.name}: images[{number}]: {error}") from error
            text = texts[number] if texts and texts[number] is not None else ""
            if not isinstance(text, str):
                found = type(text).__name__
                raise ValueError(f"{self.name}: texts[{number}]: found {found}, expected text")
            yield Frame(data, number, text=text, about=about)


@lru_cache(maxsize=1)
def _listed(path: Path, changed: int) -> list[object]:
    """The episodes of a json file: those of a list, or the one object. `changed` is its time of change."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as json: {line_of(error)}") from error
    return found if isinstance(found, list) else [found]


def items_of(
    source: str,
    sampling: video.FrameSampling,
    *,
    episodes: int = 100,
    seed: int = 0,
    cover: Cover | None = None,
) -> list[SourceItem]:
    """The items of a source, in an order that does not depend on the machine.

    `episodes` and `seed` are for simulators. Raises FileNotFoundError or ValueError where there are none.
    """
    found = _items(source, sampling, episodes, seed)
    if cover is None or cover == Cover():
        return found
    return [item if isinstance(item, Unusable) else Covered(item, cover) for item in found]


def path_of(source: str) -> Path:
    """The path of a source on disk. It has a name, also for `.` and `..`; a link keeps its own."""
    path = Path(source).expanduser().absolute()
    return path.resolve() if path.name == ".." else path


def _items(source: str, sampling: video.FrameSampling, episodes: int, seed: int) -> list[SourceItem]:
    if source.startswith(SIMULATED):
        if sampling.every is not None:
            found = f"found {sampling.every:g} for {source}"
            raise OptionError(f"--every: {found}, expected no such option: a frame is what each step shows")
        from tpru_verl.builder.sims import episodes_of

        return [*episodes_of(source.removeprefix(SIMULATED), episodes, seed)]
    path = path_of(source)
    if path.is_file():
        if path.suffix.lower() in (".jsonl", ".json"):
            return [*_episodes(path, _whole(sampling))]
        if path.suffix.lower() in video.SUFFIXES:
            return [Video(path.parent, path, sampling)]
        raise ValueError(f"{source}: found {path.suffix or 'no suffix'!r}, expected .json, .jsonl or a video")
    if not path.is_dir() and not is_local(source):
        from tpru_verl.builder.lerobot import from_hub

        path = from_hub(source)
    if not path.is_dir():
        raise FileNotFoundError(f"{source}: no such file or folder; a simulator is named as in sim:bricks")
    if (path / "meta" / "info.json").is_file():
        from tpru_verl.builder.lerobot import episodes_of as recorded

        return [*recorded(path, sampling)]
    found = [*_below(path, sampling)]
    if all(isinstance(item, Unusable) for item in found):
        kinds = ", ".join((*video.SUFFIXES, *PICTURES))
        others = f" ({len(found)} others, such as {found[0].id})" if found else ""
        raise FileNotFoundError(f"{source}: found no file that ends in {kinds}{others}")
    return found


def _below(root: Path, sampling: video.FrameSampling) -> Iterator[SourceItem]:
    """Videos, folders that hold pictures, and whatever cannot be read, at any depth."""
    failed: list[OSError] = []
    for name, folders, files in os.walk(root, onerror=failed.append):
        folder = Path(name)
        folders[:] = sorted(filterfalse(is_system_file, folders))
        files = sorted(filterfalse(is_system_file, files))
        pictures = [*filter(is_picture, files)]
        if pictures:
            yield Pictures(root, folder, _whole(sampling))
        for name in files:
            path = folder / name
            if path.suffix.lower() in video.SUFFIXES:
                yield Video(root, path, sampling)
            elif not is_picture(name) and not (pictures and name == ABOUT):
                ends = f"ends in {path.suffix}" if path.suffix else "has no suffix"
                said = f"found a file that {ends}, expected a picture, a video, or {ABOUT} beside pictures"
                kind = path.suffix.lower() or NO_SUFFIX
                yield Unusable(path.relative_to(root).as_posix(), said, kind)
        for link in (folder / name for name in folders if (folder / name).is_symlink()):
            yield Unusable(
                link.relative_to(root).as_posix(), "found a link to a folder, expected a folder", LINKS
            )
    for error in failed:
        yield Unusable(
            os.path.relpath(error.filename, root), f"found a folder that cannot be read: {error}", FOLDERS
        )


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES) and not is_system_file(name)


def _whole(sampling: video.FrameSampling) -> int:
    """`--every` for pictures, which have no times: a number of pictures. Raises ValueError for a fraction."""
    every = 1.0 if sampling.every is None else sampling.every
    if every != int(every):
        raise OptionError(f"--every: found {every:g}, expected a whole number for pictures: each Nth is read")
    return int(every)


def _episodes(path: Path, every: int) -> list[JsonEpisode]:
    if path.suffix.lower() == ".json":
        count = len(_listed(path, path.stat().st_mtime_ns))
        found = [JsonEpisode(path, number, None, every) for number in range(count)]
    else:
        found = [*_lines(path, every)]
    if not found:
        raise ValueError(f"{path}: found an empty file, expected episodes")
    return found


def _lines(path: Path, every: int) -> Iterator[JsonEpisode]:
    offset = 0
    with path.open("rb") as file:
        for number, text in enumerate(file):
            if text.strip():
                yield JsonEpisode(path, number, offset, every)
            offset += len(text)
