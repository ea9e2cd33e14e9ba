"""What a result is on disk: columns, shards written a row group at a time, and its place, taken whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tpru_verl.prompts import render
from tpru_verl.sample import Task

MANIFEST, DROPPED, CARD = "manifest.json", "dropped.json", "README.md"
# Of the shards, and of nothing else: EasyR1 takes the kind of a folder's files from whichever it lists first.
SHARDS = "data"
GROUP_ROWS = 64  # of a parquet row group: a reader holds one in memory, with its images
GROUP_BYTES = 128 * 2**20  # a group ends earlier when its images are as large as that
SHARD_BYTES = 512 * 2**20

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_STRINGS = ("task", "scene", "source_id", "row_id")
COLUMNS: dict[str, pa.DataType] = {
    "problem": pa.string(),
    "answer": pa.string(),
    "images": pa.list_(IMAGE),
    "data_source": pa.string(),
    "prompt": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    "reward_model": pa.struct([("style", pa.string()), ("ground_truth", pa.string())]),
    "extra_info": pa.struct([*((name, pa.string()) for name in _STRINGS), ("index", pa.int64())]),
}

Record = dict[str, object]


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Shards:
    """The shards of one split, written a row group at a time."""

    def __init__(
        self, folder: Path, split: str, columns: Mapping[str, pa.DataType], checksums: ThreadPoolExecutor
    ) -> None:
        self.folder, self.split, self.rows = folder, split, 0
        self.schema = schema_of(columns)
        self._checksums = checksums
        self._closed: list[tuple[Path, int, Future[str]]] = []  # temporary name, rows, checksum
        self._waiting: list[pa.Table] = []  # less than a row group
        self._writer: pq.ParquetWriter | None = None
        self._bytes = self._written = 0

    def add(self, table: pa.Table) -> None:
        self.rows += len(table)
        self._waiting.append(table)
        waiting = pa.concat_tables(self._waiting)
        while len(waiting) >= GROUP_ROWS:
            self._write_group(waiting.slice(0, GROUP_ROWS))
            waiting = waiting.slice(GROUP_ROWS)
        if waiting.nbytes >= GROUP_BYTES:
            self._write_group(waiting)
            waiting = waiting.slice(0, 0)
        self._waiting = [waiting] if len(waiting) else []

    def finish(self) -> list[dict[str, object]]:
        """Close, give each shard its final name, and describe it."""
        if self._waiting:
            self._write_group(pa.concat_tables(self._waiting))
        self._close()
        described: list[dict[str, object]] = []
        for i, (path, rows, checksum) in enumerate(self._closed):
            name = f"{SHARDS}/{self.split}-{i:05d}-of-{len(self._closed):05d}.parquet"
            size, digest = path.stat().st_size, checksum.result()
            path.rename(self.folder / name)
            described.append({"name": name, "rows": rows, "bytes": size, "xxh3_128": digest})
        return described

    @property
    def _path(self) -> Path:
        return self.folder / SHARDS / f"{self.split}-{len(self._closed)}.unfinished"

    def _write_group(self, group: pa.Table) -> None:
        self._writer = self._writer or open_shard(self._path, self.schema)
        self._writer.write_table(group, row_group_size=GROUP_ROWS)
        self._written += len(group)
        self._bytes += group.nbytes
        if self._bytes >= SHARD_BYTES:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            checksum = self._checksums.submit(checksum_of, self._path, xxhash.xxh3_128())
            self._closed.append((self._path, self._written, checksum))
        self._writer, self._bytes, self._written = None, 0, 0


def schema_of(columns: Mapping[str, pa.DataType] = COLUMNS) -> pa.Schema:
    """With what `datasets` wants to know of the columns."""
    return pa.schema(list(columns.items()), metadata={"huggingface": _features(columns)})


def open_shard(file: Path | BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    # Encoded pictures do not shrink any further: compressing them would be most of the work.
    compression = dict.fromkeys(_leaves(schema), "ZSTD")
    compression["images.list.element.bytes"] = "NONE"
    return pq.ParquetWriter(
        file,
        schema,
        compression=cast(str, compression),  # its annotation forgets the form a column
        use_dictionary=False,
        write_statistics=False,
    )


def _leaves(schema: pa.Schema) -> list[str]:
    """Names of a parquet file's columns, as its writer wants to hear them."""
    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    metadata = pq.read_metadata(pa.BufferReader(empty.getvalue()))
    return [metadata.schema.column(i).path for i in range(len(metadata.schema))]


def _features(columns: Mapping[str, pa.DataType]) -> str:
    """What `datasets` wants to know, so that `load_dataset` gives decoded pictures."""

    def feature(kind: pa.DataType) -> object:
        if pa.types.is_list(kind):
            return [feature(kind.value_type)]
        if pa.types.is_struct(kind):
            return {kind.field(i).name: feature(kind.field(i).type) for i in range(kind.num_fields)}
        return {"dtype": str(kind), "_type": "Value"}

    features = {name: feature(kind) for name, kind in columns.items()}
    features["images"] = {"feature": {"_type": "Image"}, "_type": "Sequence"}
    return json.dumps({"info": {"features": features}})


def record_of(
    problem: str, answer: str, task: Task | None, names: Mapping[str, str], template: str, index: int
) -> Record:
    """All columns but the images; `names` are scene, source_id and row_id."""
    return {
        "problem": problem,
        "answer": answer,
        "data_source": task.data_source if task else "tpru/unrecognised",
        "prompt": [{"role": "user", "content": render(problem, task, template)}],
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"task": task.value if task else "", **names, "index": index},
    }


def checksum_of(path: Path, digest: Digest) -> str:
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def card_head(splits: Sequence[str]) -> list[str]:
    """What the Hub reads of a data set card: which files are which split."""
    files = [f"  - split: {split}\n    path: {SHARDS}/{split}-*.parquet" for split in splits]
    head = ["---", "task_categories:", "- visual-question-answering", "tags:", "- tpru"]
    return [*head, "configs:", "- config_name: default", "  data_files:", *files, "---"]


def check_is_ours(out: Path) -> None:
    """Whatever is in the way and not an earlier result is the user's, and stays."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out}: found a file, expected a folder to make")
    present = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    if not present:
        return
    try:
        manifest = json.loads((out / MANIFEST).read_text())
        known = {MANIFEST, DROPPED, CARD, *(file["name"] for file in manifest["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(
            f"{out}: found other files, expected a new folder or an earlier result"
        ) from None
    if others := sorted(present - known):
        raise FileExistsError(f"{out}: found {others[0]} beside an earlier result, expected nothing else")


def put_in_place(unfinished: Path, out: Path) -> None:
    """Two renames: a crash between them leaves the old folder beside the new one, whole."""
    replaced = out.absolute().with_name(f".{out.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    unfinished.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)
