"""LeRobot data sets on disk, versions 2 (a file an episode) and 3 (many episodes a file).

Only `meta/`, and the videos or the image column of one camera, are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq

from tpru_verl.builder import video
from tpru_verl.builder.clips import Frame
from tpru_verl.data.source.cells import image_bytes
from tpru_verl.terminal import line_of


@dataclass(frozen=True)
class Recorded:
    """One episode as one camera saw it; the tasks' words are what it is about."""

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
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(64, columns=columns):
                for row in batch.to_pylist():
                    if missing := [name for name in columns if name not in row]:
                        raise ValueError(f"{self.id}: found no column {missing[0]} in {self.path.name}")
                    if row["episode_index"] == self.number and row["frame_index"] % step == 0:
                        data = image_bytes(row[self.camera], self.root)
                        yield Frame(data, row["frame_index"], row["timestamp"], about=self.about)


def episodes_of(root: Path, sampling: video.FrameSampling) -> Iterator[Recorded]:
    """All episodes, by the first camera. Raises ValueError for metadata that cannot be read."""
    try:
        info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
        version = int(str(info["codebase_version"]).lstrip("v").partition(".")[0])
        cameras = {
            name: str(feature["dtype"])
            for name, feature in sorted(info["features"].items())
            if feature["dtype"] in ("video", "image")
        }
        if not cameras or version not in (2, 3):
            found = f"version {version}, {len(cameras)} cameras"
            raise ValueError(f"found {found}, expected version 2 or 3 and a camera")
        camera = next(iter(cameras))
        template = info["video_path"] if cameras[camera] == "video" else info["data_path"]
        rows = _episodes_v3(root) if version == 3 else _episodes_v2(root)
        for row in rows:
            start, end, names = _place(row, info, camera, cameras[camera], version)
            about = "; ".join(map(str, row.get("tasks") or []))
            path = root / template.format(**names)
            yield Recorded(
                root, int(row["episode_index"]), about, camera, path, start, end, info["fps"], sampling
            )
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{root}: not readable as a LeRobot data set: {line_of(error)}") from error


def _episodes_v2(root: Path) -> Iterator[Mapping]:
    with (root / "meta" / "episodes.jsonl").open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _episodes_v3(root: Path) -> Iterator[Mapping]:
    for path in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
            for batch in file.iter_batches(columns=names):
                yield from batch.to_pylist()


def _place(
    row: Mapping, info: Mapping, camera: str, kind: str, version: int
) -> tuple[float, float | None, dict[str, object]]:
    """Seconds in the file at which the episode begins and ends, and what the path template asks for."""
    if version == 2:
        number = int(row["episode_index"])
        names = {"episode_chunk": number // int(info["chunks_size"]), "episode_index": number}
        return 0.0, None, {**names, "video_key": camera}
    where = f"videos/{camera}" if kind == "video" else "data"
    names = {"chunk_index": row[f"{where}/chunk_index"], "file_index": row[f"{where}/file_index"]}
    if kind == "image":
        return 0.0, None, names
    start, end = float(row[f"{where}/from_timestamp"]), float(row[f"{where}/to_timestamp"])
    return start, end, {**names, "video_key": camera}
