"""LeRobot data sets, versions 2 (a file an episode) and 3 (many episodes a file), on disk or of the Hub.

Only `meta/`, and the videos or the image column of one camera, are read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq

from tpru_verl.builder import video
from tpru_verl.builder.clips import Frame, Unusable
from tpru_verl.data.source.cells import image_bytes
from tpru_verl.data.source.hub import dataset_files
from tpru_verl.data.source.names import is_system_file
from tpru_verl.terminal import line_of


@dataclass(frozen=True)
class Recorded:
    """One episode as one camera saw it. The texts of its tasks describe it."""

    usual_frames: ClassVar[int] = 64
    root: Path
    number: int
    about: str
    camera: str
    path: Path  # of the video, or of the parquet file with the images
    start: float
    end: float | None  # seconds in the video; None for its end
    fps: float
    sampling: video.FrameSampling

    @property
    def id(self) -> str:
        return f"{self.root.name}/episode-{self.number:06d}"

    @property
    def scene(self) -> str:
        return self.root.name

    @property
    def group(self) -> str:
        return self.id

    def files(self) -> Sequence[Path]:
        return [self.path]

    def frames(self) -> Iterator[Frame]:
        if not self.path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f"{self.id}: found the path {self.path}, expected one inside {self.root}")
        if not self.path.is_file():
            raise ValueError(f"{self.id}: found no file {self.path.relative_to(self.root)}")
        if self.path.suffix == ".parquet":
            return self._images()
        return video.frames_of(self.path, self.sampling, start=self.start, end=self.end, about=self.about)

    def _images(self) -> Iterator[Frame]:
        step = max(1, round((self.sampling.every or video.SHORTEST) * self.fps))
        columns = ["episode_index", "frame_index", "timestamp", self.camera]
        last = -1
        with pq.ParquetFile(self.path) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise ValueError(f"{self.id}: found no column {missing[0]} in {self.path.name}")
            for batch in file.iter_batches(64, columns=columns):
                for row in batch.to_pylist():
                    if row["episode_index"] != self.number:
                        continue
                    number = whole_number(row, "frame_index")
                    if number <= last:
                        raise ValueError(
                            f"{self.id}: found frame {number} after {last}, expected rising numbers"
                        )
                    last = number
                    if number % step == 0:
                        data = image_bytes(row[self.camera], self.root)
                        yield Frame(data, number, seconds(row, "timestamp"), about=self.about)


def episodes_of(root: Path, sampling: video.FrameSampling) -> Iterator[Recorded | Unusable]:
    """All episodes, by the first camera.

    Raises ValueError where the metadata cannot be read or has no episodes. An episode whose own metadata is
    wrong is an `Unusable` item.
    """
    try:
        info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
        yield from _episodes(root, info, sampling)
    except Exception as error:  # a hand-written or cut file raises many kinds
        missing = isinstance(error, KeyError)
        said = f"found no {error} in meta" if missing else line_of(error)
        raise ValueError(f"{root}: not readable as a LeRobot data set: {said}") from error


def _episodes(root: Path, info: Mapping, sampling: video.FrameSampling) -> Iterator[Recorded | Unusable]:
    version = int(str(info["codebase_version"]).lstrip("v").partition(".")[0])
    if version not in (2, 3):
        raise ValueError(f"found version {version}, expected version 2 or 3")
    camera, kind = _camera(info)
    template = info["video_path"] if kind == "video" else info["data_path"]
    fps = seconds(info, "fps")
    if fps <= 0:
        raise ValueError(f"fps: found {fps:g}, expected a number over 0")
    place = "meta/episodes.jsonl" if version == 2 else "meta/episodes"
    count = 0
    for count, row in enumerate(_episodes_v2(root) if version == 2 else _episodes_v3(root), start=1):
        try:
            if isinstance(row, ValueError):
                raise row
            number = whole_number(row, "episode_index")
            start, end, names = _place(row, info, camera, kind, version)
            path = root / filled(template, names)
            yield Recorded(root, number, _tasks(row), camera, path, start, end, fps, sampling)
        except (KeyError, ValueError) as error:
            said = f"found no {error}" if isinstance(error, KeyError) else line_of(error)
            yield Unusable(f"{root.name}/{place} row {count}", said)
    if not count:
        raise ValueError(f"found no episodes in {place}; was the recording interrupted?")


def _camera(info: Mapping) -> tuple[str, str]:
    """Name of the first camera, and what it recorded: `video` or `image`. Raises ValueError where none is."""
    for name, feature in sorted(info["features"].items()):
        if feature["dtype"] in ("video", "image"):
            return name, str(feature["dtype"])
    raise ValueError("found 0 cameras, expected a feature of the kind video or image")


def from_hub(name: str) -> Path:
    """The folder of a LeRobot data set of the Hub: its metadata, and what its first camera recorded.

    Raises ValueError, in one line, where it cannot be had.
    """
    root = dataset_files(name, "meta/*")
    try:
        info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
        camera, kind = _camera(info)
    except Exception as error:
        said = "found no meta/info.json" if isinstance(error, FileNotFoundError) else line_of(error)
        raise ValueError(f"{name}: not readable as a LeRobot data set: {said}") from error
    return dataset_files(name, f"videos/*{camera}/*" if kind == "video" else "data/*")


def _tasks(row: Mapping) -> str:
    tasks = row.get("tasks")
    if tasks is None:
        return ""
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise ValueError(f"tasks: found {_short(tasks)}, expected a list of texts")
    return "; ".join(tasks)


def _episodes_v2(root: Path) -> Iterator[Mapping | ValueError]:
    """Lines; one that is cut, as by an interrupted recording, comes as the error that it raises."""
    with (root / "meta" / "episodes.jsonl").open(encoding="utf-8") as file:
        for line in filter(str.strip, file):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield ValueError(f"not readable as json: {line_of(error)}")
            else:
                yield row if isinstance(row, dict) else ValueError(f"found {_short(row)}, expected an object")


def _episodes_v3(root: Path) -> Iterator[Mapping]:
    folder = root / "meta" / "episodes"
    for path in sorted(folder.rglob("*.parquet")):
        if any(map(is_system_file, path.relative_to(folder).parts)):
            continue
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
            for batch in file.iter_batches(columns=names):
                yield from batch.to_pylist()


def _place(
    row: Mapping, info: Mapping, camera: str, kind: str, version: int
) -> tuple[float, float | None, dict[str, int | str]]:
    """Seconds in the file at which the episode begins and ends, and the fields of the path's template."""
    if version == 2:
        number = whole_number(row, "episode_index")
        size = whole_number(info, "chunks_size")
        if not size:
            raise ValueError("chunks_size: found 0, expected a number over 0")
        names = {"episode_chunk": number // size, "episode_index": number}
        return 0.0, None, {**names, "video_key": camera}
    where = f"videos/{camera}" if kind == "video" else "data"
    names = {name: whole_number(row, f"{where}/{name}") for name in ("chunk_index", "file_index")}
    if kind == "image":
        return 0.0, None, {**names}
    start, end = seconds(row, f"{where}/from_timestamp"), seconds(row, f"{where}/to_timestamp")
    if not 0 <= start < end:
        raise ValueError(f"found the times {start:g} to {end:g} s, expected a beginning before the end")
    return start, end, {**names, "video_key": camera}


def filled(template: object, fields: Mapping[str, int | str]) -> str:
    """A path's template with its fields, as `str.format` would, for plain `{name}` and `{name:03d}` alone.

    The template is text of others: with `str.format`, a width of 4000000000 takes all memory. Raises
    ValueError for any other field or form.
    """
    if not isinstance(template, str):
        raise ValueError(
            f"found the path {_short(template)}, expected text such as 'data/{{file_index:03d}}'"
        )

    def value(match: re.Match[str]) -> str:
        name, width = match[1], match[2]
        if name not in fields:
            raise ValueError(f"found the path {_short(template)}, expected fields among {', '.join(fields)}")
        field = fields[name]
        if width is None:
            return str(field)
        if not isinstance(field, int):
            raise ValueError(f"found {match[0]} in the path, expected {{{name}}}")
        return f"{field:{width}d}"

    path = _FIELD.sub(value, template)
    if re.search(r"[{}]", _FIELD.sub("", template)):
        raise ValueError(f"found the path {_short(template)}, expected fields such as {{file_index:03d}}")
    return path


_FIELD = re.compile(r"\{(\w+)(?::(\d{0,2})d?)?\}")


def whole_number(row: Mapping, name: str) -> int:
    """A field that has to be a whole number from 0. Raises ValueError."""
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(f"{name}: found {_short(value)}, expected a whole number from 0")
    return value


def seconds(row: Mapping, name: str) -> float:
    """A field that has to be a finite number. Raises ValueError."""
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name}: found {_short(value)}, expected a number")
    return float(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
