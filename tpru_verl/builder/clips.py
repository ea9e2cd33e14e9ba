"""Frames, the clips made of them, and the files in which clips pass from one stage to the next.

A file of clips is an Arrow file with one clip in each batch. So a reader can take one column of one clip
without the rest. The file appears whole or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

GREY = 64  # pixels of the grey thumbnail's sides
HASH_BYTES = 32  # a perceptual hash of 16 x 16 bits

_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "item": pa.string(),
        "scene": pa.string(),
        "group": pa.string(),
        "about": pa.string(),
        "form": pa.string(),
        "index": pa.list_(pa.int64()),
        "time": pa.list_(pa.float64()),
        "text": pa.list_(pa.string()),
        "hash": pa.binary(),
        "grey": pa.binary(),
        "leak_hash": pa.binary(),
        "size": pa.list_(pa.int64()),
        "digest": pa.binary(),
        "images": pa.list_(pa.binary()),
    }
)


_CLIP = tuple(name for name in _SCHEMA.names if name not in ("digest", "images"))


@dataclass(frozen=True)
class Frame:
    """One encoded picture of a source.

    `index` is its number in the source (of a video's frame, of a file in its folder, of a step), None where
    frames of a video before it were not read. `time` is in seconds, `text` says what is done at this step,
    `about` what the whole episode is about, `name` is the name of its file where it has one of its own, and
    `shot` is the number of cuts before it. `uncovered` is the picture before `--crop` and `--mask`, b""
    without them.
    """

    data: bytes
    index: int | None
    time: float | None = None
    text: str = ""
    about: str = ""
    name: str = ""
    shot: int = 0
    uncovered: bytes = b""

    @property
    def place(self) -> str:
        """For messages: its number or its time, and its name."""
        number = f"frame at {self.time:g} s" if self.index is None else f"frame {self.index}"
        return f"{number} ({self.name})" if self.name else number


def check_text(**fields: str) -> None:
    """Raises ValueError for a lone surrogate: a byte of a file name, or half a character of a json file."""
    for name, text in fields.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"found {text[error.start]!r} at {error.start}"
            raise ValueError(f"{name}: {found}, expected text that UTF-8 can hold") from error


class SourceItem(Protocol):
    """One thing that a source holds: a video, a folder of pictures, an episode.

    All items of one `group` stay in one split. `usual_frames` is a rough measure of the work for an item.
    `files` are all files that decide its frames. `files` and `frames` raise ValueError or OSError, in one
    line, where the item cannot be used.
    """

    usual_frames: ClassVar[int]

    @property
    def id(self) -> str: ...
    @property
    def scene(self) -> str: ...
    @property
    def group(self) -> str: ...
    def files(self) -> Sequence[Path]: ...
    def frames(self) -> Iterator[Frame]: ...


@dataclass(frozen=True)
class Unusable:
    """An item that cannot be used, and why. It is listed among those that fail while they are read."""

    usual_frames: ClassVar[int] = 1
    id: str
    problem: str
    kind: str = ""  # of file, as the summary counts it
    scene: str = ""
    group: str = ""

    def files(self) -> Sequence[Path]:
        return ()

    def frames(self) -> Iterator[Frame]:
        raise ValueError(f"{self.id}: {self.problem}")


@dataclass(frozen=True)
class Clip:
    """Frames of one item, one after another. The first axis of each array is the frame."""

    id: str
    item: str  # the id of its item; a long item has several clips
    scene: str
    group: str
    about: str
    form: str  # encoding and size of its pictures; all of them share it
    index: list[int | None]
    time: list[float | None]
    text: list[str]
    hash: NDArray[np.uint8]  # (frames, HASH_BYTES)
    grey: NDArray[np.uint8]  # (frames, GREY, GREY)
    # As `tpru data validate --against` compares, of covered and of uncovered pictures; else empty.
    leak_hash: NDArray[np.uint64]
    size: list[int]  # bytes of each picture

    def __len__(self) -> int:
        return len(self.index)


def clip_id(item: str, number: int) -> str:
    """A clip's id: the item's for the first clip, else with `#` and its number.

    The first clip of an item whose own id ends like that has `#0`, so that no two items share one.
    """
    return f"{item}#{number}" if number or re.search(r"#\d+$", item) else item


@dataclass
class Counts:
    """Counts of items, frames and clips, by the reasons that the manifest gives."""

    items: int = 0
    frames: int = 0
    kept_frames: int = 0
    clips: int = 0
    cuts: int = 0  # between shots of a video, each of which ends a clip
    dropped_frames: dict[str, int] = field(default_factory=dict)
    dropped: list[dict[str, str]] = field(default_factory=list)  # items and clips: id, reason, detail
    # Between neighbours that were compared: bits that differ, and the share of pixels that changed.
    bits: list[int] = field(default_factory=list)
    change: list[float] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        self.items += other.items
        self.frames += other.frames
        self.kept_frames += other.kept_frames
        self.clips += other.clips
        self.cuts += other.cuts
        for reason, count in other.dropped_frames.items():
            self.dropped_frames[reason] = self.dropped_frames.get(reason, 0) + count
        self.dropped += other.dropped
        self.bits = (self.bits + other.bits)[:MAX_COMPARED]
        self.change = (self.change + other.change)[:MAX_COMPARED]


MAX_COMPARED = 50_000  # pairs whose distances are kept: enough for quantiles


class Writer:
    """Writes one file of clips."""

    def __init__(self, file: BinaryIO) -> None:
        self._writer = pa.ipc.new_file(file, _SCHEMA)

    def add(self, clip: Clip, images: Sequence[bytes]) -> None:
        line = {name: getattr(clip, name) for name in _CLIP}
        line |= {name: line[name].tobytes() for name in ("hash", "grey", "leak_hash")}
        line |= {
            "digest": b"".join(xxhash.xxh3_64_digest(image) for image in images),
            "images": list(images),
        }
        self._writer.write_batch(pa.RecordBatch.from_pylist([line], _SCHEMA))

    def close(self) -> None:
        self._writer.close()


def file_of(folder: Path, number: int) -> Path:
    """Where the clips of that unit of work are."""
    return folder / f"{number:06d}.arrow"


def counts_file(path: Path) -> Path:
    return path.with_suffix(".json")


def read_counts(path: Path) -> Counts:
    return Counts(**json.loads(counts_file(path).read_text()))


@lru_cache(maxsize=16)
def _open(path: Path) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(str(path)))


@lru_cache(maxsize=64)
def _batch(path: Path, number: int) -> pa.RecordBatch:
    return _open(path).get_batch(number)


@lru_cache(maxsize=64)
def read_clip(path: Path, number: int) -> Clip:
    """A clip without its pictures, which are not read from the disk."""
    batch = _batch(path, number)
    line = {name: batch.column(name)[0].as_py() for name in _CLIP}
    frames = len(line["index"])
    line["hash"] = np.frombuffer(line["hash"], np.uint8).reshape(frames, HASH_BYTES)
    line["grey"] = np.frombuffer(line["grey"], np.uint8).reshape(frames, GREY, GREY)
    line["leak_hash"] = np.frombuffer(line["leak_hash"], np.uint64)
    return Clip(**line)


def read_images(path: Path, number: int, frames: Sequence[int]) -> list[bytes]:
    """The encoded pictures of those frames."""
    images = _batch(path, number).column("images")[0].values
    return [images[frame].as_py() for frame in frames]


@dataclass(frozen=True)
class Label:
    """The facts about a clip that decide its split."""

    id: str
    scene: str
    group: str
    digests: list[bytes]  # of its pictures
    hash: NDArray[np.uint8]  # (frames, HASH_BYTES)
    leak_hash: NDArray[np.uint64]


def read_labels(path: Path) -> Iterator[Label]:
    reader = _open(path)
    for batch in map(reader.get_batch, range(reader.num_record_batches)):
        names = ("id", "scene", "group", "digest", "hash", "leak_hash")
        line = {name: batch.column(name)[0].as_py() for name in names}
        digests = line.pop("digest")
        line["hash"] = np.frombuffer(line["hash"], np.uint8).reshape(-1, HASH_BYTES)
        line["leak_hash"] = np.frombuffer(line["leak_hash"], np.uint64)
        yield Label(**line, digests=[digests[i : i + 8] for i in range(0, len(digests), 8)])


@dataclass(frozen=True)
class Told:
    """A model's words about a clip; "" where it was not asked."""

    about: str = ""
    wrong: str = ""
    rejected: str = ""


def told_file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


@lru_cache(maxsize=16)
def read_told(path: Path) -> dict[int, Told]:
    return {int(number): Told(**told) for number, told in json.loads(path.read_text()).items()}


def forget() -> None:
    """Forget the files that this process has read: an earlier build may have had others of these names."""
    for cached in (_open, _batch, read_clip, read_told):
        cached.cache_clear()
