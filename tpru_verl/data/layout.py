"""A result on disk: its columns, its shards, its folder, and its manifest."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tpru_verl.files import LOCK, UNFINISHED, companion, is_fixed
from tpru_verl.prompts import render
from tpru_verl.sample import Task

MANIFEST, DROPPED, CARD = "manifest.json", "dropped.json", "README.md"
WORK, _REPLACED = ".work", ".replaced"
_OWN = {UNFINISHED, WORK, _REPLACED, LOCK}  # what may lie in a folder that cannot be renamed
# Of the shards, and of nothing else: EasyR1 takes the kind of a folder's files from whichever it lists first.
SHARDS = "data"
GROUP_ROWS = 64  # of a parquet row group: a reader holds one in memory, with its images
GROUP_BYTES = 128 * 2**20  # a group ends earlier when its images are as large as that
SHARD_BYTES = 512 * 2**20

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_STRINGS = ("task", "scene", "source_id", "row_id", "problem")
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
    """The schema, with the features of the columns for `datasets`."""
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
    """Names of a parquet file's columns, in the form that its writer takes."""
    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    metadata = pq.read_metadata(pa.BufferReader(empty.getvalue()))
    return [metadata.schema.column(i).path for i in range(len(metadata.schema))]


def _features(columns: Mapping[str, pa.DataType]) -> str:
    """The features of the columns for `datasets`, with which `load_dataset` decodes pictures."""

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
    """All columns but the images; `names` are scene, source_id and row_id.

    `extra_info` has the problem, too: a reward is handed nothing else that tells the options.
    """
    return {
        "problem": problem,
        "answer": answer,
        "data_source": task.data_source if task else "tpru/unrecognised",
        "prompt": [{"role": "user", "content": render(problem, task, template)}],
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {
            "task": task.value if task else "",
            **names,
            "problem": problem,
            "index": index,
        },
    }


def checksum_of(path: Path, digest: Digest) -> str:
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def card_head(splits: Sequence[str], shards: Sequence[Mapping[str, object]]) -> list[str]:
    """The head of a data set card, from which the Hub learns the files of each split.

    `shards` as the manifest describes them. `load_dataset` of a folder remembers rows by this head alone
    (datasets 4.8 and 5.2: the paths, times and sizes of the shards do not count). Without their checksums,
    it would give the rows of an earlier result, or of another folder with the same name.
    """
    files = [f"  - split: {split}\n    path: {SHARDS}/{split}-*.parquet" for split in splits]
    head = ["---", "task_categories:", "- visual-question-answering", "tags:", "- tpru"]
    checksums = " ".join(str(shard["xxh3_128"]) for shard in shards)
    checksum = xxhash.xxh3_128_hexdigest(checksums.encode())
    described = ["configs:", "- config_name: default", f"  description: rows {checksum}", "  data_files:"]
    return [*head, *described, *files, "---"]


def check_is_ours(out: Path) -> None:
    """Raises FileExistsError unless `out` is missing, empty or an earlier result."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out}: found a file, expected a folder to make")
    # A link counts, even one that leads nowhere: git-annex and DVC keep files in this way.
    present = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_symlink() or not p.is_dir()}
    present = {name for name in present if name.split("/")[0] not in _OWN}
    if not present:
        return
    known = {MANIFEST, DROPPED, CARD, *_listed(out)}
    if known == {MANIFEST, DROPPED, CARD}:
        raise FileExistsError(f"{out}: found other files, expected a new folder or an earlier result")
    if others := sorted(present - known):
        raise FileExistsError(f"{out}: found {others[0]} beside an earlier result, expected nothing else")


def _listed(out: Path) -> set[str]:
    """Files that the manifest names, and those of a replacement that a kill ended in the middle."""
    names: set[str] = set()
    for folder in (out, companion(out, _REPLACED)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            names |= {str(file["name"]) for file in json.loads((folder / MANIFEST).read_text())["files"]}
    return names


@contextmanager
def result_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder. It becomes `out` when the block ends, and disappears when the block raises.

    A link stays a link. The caller holds `files.locked(out)`. A kill at any moment leaves the old result or
    the new one. Where `out` cannot be renamed (a mount point, the working folder), its content is replaced
    instead: the rows in one step, and the manifest is absent while they change.

    Raises FileExistsError as `check_is_ours`, before the block and once more after it.
    """
    target = Path(os.path.realpath(out))
    unfinished, replaced = companion(out, UNFINISHED), companion(out, _REPLACED)
    _recover(target, replaced)
    check_is_ours(out)
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / SHARDS).mkdir(parents=True)
    try:
        yield unfinished
        check_is_ours(out)
        if is_fixed(target) or Path.cwd().is_relative_to(target):
            _replace_content(unfinished, target, replaced)
        else:
            _replace(unfinished, target, replaced)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        _recover(target, replaced)


def _recover(out: Path, replaced: Path) -> None:
    """Remove what a replacement leaves, and bring the old result back where there is neither old nor new."""
    for old, place in ((replaced, out), (replaced / SHARDS, out / SHARDS)):
        if old.exists() and not place.exists():
            old.rename(place)  # a kill came between two renames
    if (out / MANIFEST).exists():
        shutil.rmtree(replaced, ignore_errors=True)


def _replace(new: Path, old: Path, replaced: Path) -> None:
    """Put the folder `new` in the place of `old`, in one step where the system can."""
    if old.exists():
        shutil.copymode(old, new)
        if _exchanged(new, old):
            return
        old.rename(replaced)
    new.rename(old)


def _replace_content(new: Path, out: Path, replaced: Path) -> None:
    replaced.mkdir(exist_ok=True)
    ours = [{"name": name} for name in _listed(out) | _listed(new)]  # for `check_is_ours` after a kill
    (replaced / MANIFEST).write_text(json.dumps({"files": ours}))
    (out / MANIFEST).unlink(missing_ok=True)
    _replace(new / SHARDS, out / SHARDS, replaced / SHARDS)
    names = {path.name for path in new.iterdir()} - {SHARDS, MANIFEST}
    for path in out.iterdir():
        if path.name not in {*names, *_OWN, SHARDS}:
            path.unlink()
    for name in (*names, MANIFEST):
        (new / name).replace(out / name)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in one step. False where this system or file system has no call for that."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def check_files(
    paths: Sequence[Path], *, complete: bool = False, whole: bool = False, digests: bool = False
) -> None:
    """Compare shards of a result with its manifest; files of other folders are not looked at.

    Sizes and numbers of rows always; checksums with `digests`, which reads all bytes; with `complete` also
    whether each split that occurs has all its shards, and with `whole` whether each split occurs.

    Raises ValueError, which names the file, for a difference.
    """
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        if path.absolute().parent.name == SHARDS:
            by_folder.setdefault(path.absolute().parent.parent, []).append(path)
    for folder, shards in by_folder.items():
        if not (listed := shards_of(folder)):
            continue
        for shard in shards:
            if shard.name not in listed:
                raise ValueError(f"{shard}: not in {folder / MANIFEST}; {_AGAIN}")
            _check_file(shard, listed[shard.name], digests=digests)
        splits = {_split_of(shard.name) for shard in shards}
        missing = {name for name in listed if whole or _split_of(name) in splits}
        missing -= {shard.name for shard in shards}
        if missing and (complete or whole):
            first = min(missing)
            alone = f", or read one split alone: {folder}@{min(splits)}" * (_split_of(first) not in splits)
            found = f"missing, {folder / MANIFEST} lists it; {_AGAIN}{alone}"
            raise ValueError(f"{folder / SHARDS / first}: {found}")


_AGAIN = "write the folder again, or remove the manifest if the change was intended"


def _check_file(shard: Path, listed: Mapping[str, object], *, digests: bool) -> None:
    def found() -> Iterator[tuple[str, object]]:  # what costs least first
        yield "bytes", shard.stat().st_size
        yield "rows", pq.read_metadata(shard).num_rows
        if digests:
            yield "xxh3_128", checksum_of(shard, xxhash.xxh3_128())

    for name, value in found():
        if value != listed.get(name, value):
            raise ValueError(
                f"{shard}: found {name} {value}, expected {listed[name]} as in {MANIFEST}; {_AGAIN}"
            )


def shards_of(folder: Path) -> dict[str, Mapping[str, object]]:
    """Name of a shard -> what the manifest says of it; empty without a manifest of ours."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        files = json.loads((folder / MANIFEST).read_text())["files"]
        parts = ((str(file["name"]).rpartition("/"), file) for file in files)
        return {name: file for (where, _, name), file in parts if where == SHARDS}
    return {}


def _split_of(shard: str) -> str:
    return shard.rsplit("-", 3)[0]  # train-00000-of-00002.parquet
