"""`tpru data prepare`: shards that veRL, EasyR1 and `datasets` read as they are, and where they came from."""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tpru_verl import __version__
from tpru_verl.data.source import OPTIONAL, Form, Part, Row, Unit, columns_of, read_batches
from tpru_verl.data.validate import Report, Seen, check_units, compare_rows, summary_of
from tpru_verl.data.work import Source, each_unit
from tpru_verl.files import write_json
from tpru_verl.prompts import render
from tpru_verl.sample import Task

if TYPE_CHECKING:
    from tpru_verl.data.tokens import PromptCounter

MANIFEST, DROPPED, CARD = "manifest.json", "dropped.json", "README.md"
# Of the shards, and of nothing else: EasyR1 takes the kind of a folder's files from whichever it lists first.
SHARDS = "data"
MADE_BY = "tpru data prepare"
ONE_SPLIT = "train"  # where rows go that are not split
GROUP_ROWS = 64  # of a parquet row group: a reader holds one in memory, with its images
GROUP_BYTES = 128 * 2**20  # a group ends earlier when its images are as large as that
SHARD_BYTES = 512 * 2**20

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_STRINGS = ("task", "scene", "source_id", "row_id")
COLUMNS: dict[str, pa.DataType] = {
    "problem": pa.string(),
    "answer": pa.string(),
    "images": pa.list_(_IMAGE),
    "data_source": pa.string(),
    "prompt": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    "reward_model": pa.struct([("style", pa.string()), ("ground_truth", pa.string())]),
    "extra_info": pa.struct([*((name, pa.string()) for name in _STRINGS), ("index", pa.int64())]),
}
_COUNTS: dict[str, pa.DataType] = {"prompt_tokens": pa.int32(), "prompt_tokens_key": pa.string()}

Record = dict[str, object]


class Asked(NamedTuple):
    """What of a row decides the length of its prompt."""

    problem: str
    task: Task | None
    images: list[bytes]

    @classmethod
    def of(cls, row: Row) -> Asked:
        return cls(str(row.problem), row.task, row.images())


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the result, beside the source."""

    seed: int = 0
    template: str = "tpru"
    # Share of each split, such as {"train": 0.95, "test": 0.05}; rows of one source stay together.
    split: Mapping[str, float] | None = None
    drop_invalid: bool = False
    deep: bool = False


def prepare(
    source: Source,
    out: Path,
    options: Options,
    *,
    against: Source | None = None,
    counter: PromptCounter | None = None,
    workers: int | None = None,
) -> dict[str, object]:
    """Write shards, manifest and card to `out`, whole or not at all; returns the manifest.

    The images' bytes are those of the source. An earlier result in `out` is replaced by the new one.

    Raises:
        FileExistsError: `out` holds something else.
        ValueError: unusable rows without `drop_invalid`, or nothing left, or shares that are none.
        OSError: no space left.
    """
    check_shares(options.split)
    check_is_ours(out)
    report = Report.of(source)
    unfinished = out.absolute().with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / SHARDS).mkdir(parents=True)
    try:
        with _Writer(source, unfinished, options, counter) as writer:
            _check_and_write(writer, report, against, workers)
            files = writer.finish()
        kept = _kept(report)
        manifest = _manifest(source, report, kept, options, files, counter)
        write_json(unfinished / MANIFEST, manifest)
        if report.unusable:
            findings = [asdict(f) for f in report.findings if (f.file, f.row) in report.unusable]
            write_json(unfinished / DROPPED, findings)
        (unfinished / CARD).write_text(_card(manifest, sorted(writer.shards)))
        put_in_place(unfinished, out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(f"{out}: no space left, after {_size(unfinished) / 2**20:.0f} MiB") from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return manifest


def _check_and_write(writer: _Writer, report: Report, against: Source | None, workers: int | None) -> None:
    """Write while other processes check, unless where a row goes takes a look at all of them first."""
    source, options = writer.source, writer.options
    checked = check_units(source, report, deep=options.deep, hashes=against is not None, workers=workers)
    at_once = options.split is None and against is None
    for unit, seen in checked:
        if at_once and (options.drop_invalid or len(report.seen) == report.rows):
            writer.write(unit, {(row.file, row.row): ONE_SPLIT for row in seen})
    compare_rows(source, report, against, workers=workers)
    if report.unusable and not options.drop_invalid:
        raise ValueError(f"{summary_of(report)}; --drop-invalid leaves them out and lists them")
    kept = _kept(report)
    if not kept:
        raise ValueError(f"{source.name}: found no usable row among {report.rows}; {summary_of(report)}")
    if not at_once:
        splits = _splits(kept, options)
        for unit, _ in each_unit(source, _nothing, title="Writing shards", workers=1):
            writer.write(unit, splits)


def _nothing(unit: Unit, form: Form) -> None:
    """The units themselves are all that writing needs."""


def _kept(report: Report) -> list[Seen]:
    unusable = report.unusable
    return [row for row in report.seen if (row.file, row.row) not in unusable]


def check_shares(split: Mapping[str, float] | None) -> None:
    if split is None:
        return
    if any(not 0 < share <= 1 for share in split.values()) or abs(sum(split.values()) - 1) > 1e-6:
        found = ",".join(f"{name}={share:g}" for name, share in split.items())
        raise ValueError(f"--split: found {found}, expected shares over 0 that sum to 1")


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


def _splits(rows: Sequence[Seen], options: Options) -> dict[tuple[str, int], str]:
    """Split of each (file, row). Rows that share a source or a picture are one group and stay together."""
    shares = options.split or {ONE_SPLIT: 1.0}
    groups = _groups(rows)
    by_group: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        by_group.setdefault(group, []).append(i)
    # By content, so that neither the order of files nor of rows moves a row to another split.
    drawn = sorted(by_group.values(), key=lambda group: _draw(options.seed, rows, group))
    names = shared_out([len(group) for group in drawn], shares)
    return {
        (rows[i].file, rows[i].row): name for name, group in zip(names, drawn, strict=True) for i in group
    }


def shared_out(sizes: Sequence[int], shares: Mapping[str, float]) -> list[str]:
    """The split of each group, in the order given. Raises ValueError where a split would be empty."""
    names, result = list(shares), list[str]()
    bounds = [sum(list(shares.values())[: i + 1]) * sum(sizes) for i in range(len(names))]
    done = 0
    for size in sizes:
        middle = done + size / 2
        result.append(next((n for n, bound in zip(names, bounds, strict=True) if middle < bound), names[-1]))
        done += size
    if missing := [name for name in names if name not in result]:
        found = f"{len(sizes)} groups of rows that share a source or a picture"
        raise ValueError(f"--split: found {found}, expected enough for {missing[0]}={shares[missing[0]]:g}")
    return result


def _draw(seed: int, rows: Sequence[Seen], group: Sequence[int]) -> bytes:
    return xxhash.xxh3_128_digest(min(rows[i].digest for i in group), seed)


def _groups(rows: Sequence[Seen]) -> list[int]:
    """Number of each row's group: connected by `source_id` or by an identical image."""
    return connected([(*row.images, *([row.group] if row.group else [])) for row in rows])


def connected(keys: Sequence[Sequence[str | bytes]]) -> list[int]:
    """Number of each one's group: who has a key in common is in one (union-find)."""
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str | bytes, int] = {}
    for i, own in enumerate(keys):
        for key in own:
            parent[root(i)] = root(first.setdefault(key, i))
    return [root(i) for i in range(len(keys))]


class _Writer:
    """The shards of all splits."""

    def __init__(self, source: Source, folder: Path, options: Options, counter: PromptCounter | None) -> None:
        self.source, self.folder, self.options, self.counter = source, folder, options, counter
        self.shards: dict[str, _Shards] = {}
        self._columns = {**COLUMNS, **(_COUNTS if counter else {})}
        # Checksums need no interpreter: beside writing they cost next to nothing.
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, unit: Unit, splits: Mapping[tuple[str, int], str]) -> None:
        """Write the unit's rows that have a split, (file, row) to name, each to its own."""
        for rows, images in read_batches(unit, self.source.form(unit)):
            chosen: dict[str, list[int]] = {}
            for i, row in enumerate(rows):
                if name := splits.get((row.file, row.number)):
                    chosen.setdefault(name, []).append(i)
            for name, numbers in chosen.items():
                shard = self.shards.get(name) or _Shards(self.folder, name, self._columns, self._pool)
                self.shards[name] = shard
                shard.add(_table(rows, images, numbers, shard, self.options.template, self.counter))

    def finish(self) -> list[dict[str, object]]:
        """Close all shards, and describe them."""
        return [file for _, shard in sorted(self.shards.items()) for file in shard.finish()]


def _table(
    rows: Sequence[Row],
    images: pa.Array | None,
    chosen: Sequence[int],
    shard: _Shards,
    template: str,
    counter: PromptCounter | None,
) -> pa.Table:
    """The chosen rows as both frameworks read them."""
    records = [_record(rows[i], template, shard.rows + n) for n, i in enumerate(chosen)]
    if counter:
        for record, count in zip(records, counter.count(Asked.of(rows[i]) for i in chosen), strict=True):
            record |= {"prompt_tokens": count, "prompt_tokens_key": counter.key}
    columns = {
        name: pa.array([record[name] for record in records], shard.schema.field(name).type)
        for name in shard.schema.names
        if name != "images"
    }
    columns["images"] = _images(rows, images, chosen)
    return pa.table([columns[name] for name in shard.schema.names], schema=shard.schema)


def _record(row: Row, template: str, index: int) -> Record:
    names = {"scene": row.field("scene"), "source_id": row.source_id, "row_id": row.row_id}
    given = row.field("data_source")
    record = record_of(str(row.problem), str(row.answer).strip(), row.task, names, template, index)
    return {**record, "data_source": given} if given else record


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


def _images(rows: Sequence[Row], images: pa.Array | None, chosen: Sequence[int]) -> pa.Array:
    """The chosen rows' images as {bytes, path}: those of a table as they lie there, without copying each."""
    kept = [rows[i] for i in chosen]
    if images is None or not all(_lies_in_table(row) for row in kept):
        cells = [[{"bytes": data, "path": None} for data in row.images()] for row in kept]
        return pa.array(cells, COLUMNS["images"])
    taken = images if len(kept) == len(images) else images.take(pa.array(chosen))
    files = taken.flatten()
    paths: list[str | None] = [None] * len(files)
    if pa.types.is_struct(files.type):
        parts = dict(zip((field.name for field in files.type), files.flatten(), strict=True))
        files = parts["bytes"]
        # A path says nothing outside of the source's folder; its last part still names the picture.
        paths = [Path(path).name if path else None for path in parts.get("path", pa.nulls(0)).to_pylist()]
    columns = [files.cast(pa.binary()), pa.array(paths or [None] * len(files), pa.string())]
    starts = np.cumsum([0, *taken.value_lengths().to_pylist()])
    return pa.ListArray.from_arrays(
        pa.array(starts, pa.int32()), pa.StructArray.from_arrays(columns, fields=list(_IMAGE))
    )


def _lies_in_table(row: Row) -> bool:
    return isinstance(row.cells, list) and all(isinstance(cell, memoryview) for cell in row.cells)


class _Shards:
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


def open_shard(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # Encoded pictures do not shrink any further: compressing them would be most of the work.
    compression = dict.fromkeys(_leaves(schema), "ZSTD")
    compression["images.list.element.bytes"] = "NONE"
    return pq.ParquetWriter(
        path,
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


def _manifest(
    source: Source,
    report: Report,
    kept: Sequence[Seen],
    options: Options,
    files: list[dict[str, object]],
    counter: PromptCounter | None,
) -> dict[str, object]:
    left_out = {name for part in source.parts for name in _left_out(part, source)}
    return {
        "made_by": MADE_BY,
        "source": {
            "name": Path(source.name).name if source.parts[0].path else source.name,
            "revision": source.revision,
            "read_as": report.detected,
            "files": [_described(part) for part in source.parts],
            "columns_left_out": sorted(left_out),
        },
        "options": {**asdict(options), "prompt_tokens_key": counter.key if counter else None},
        "rows": {
            "read": report.rows,
            "dropped": len(report.unusable),
            "written": len(kept),
            "tasks": dict(sorted(Counter(row.task or "not recognised" for row in kept).items())),
        },
        "files": files,
        "versions": {"tpru_verl": __version__, "pyarrow": pa.__version__},
    }


def _left_out(part: Part, source: Source) -> set[str]:
    form = source.forms[source.parts.index(part)]
    return {*columns_of(part)} - {form.problem, form.answer, form.images, *OPTIONAL}


def _described(part: Part) -> dict[str, object]:
    if part.path is None:
        return {"name": part.name, "rows": len(part.hub or ())}
    size, checksum = part.path.stat().st_size, checksum_of(part.path, xxhash.xxh3_128())
    return {"name": part.path.name, "bytes": size, "xxh3_128": checksum}


def checksum_of(path: Path, digest: Digest) -> str:
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _card(manifest: Mapping[str, object], splits: Sequence[str]) -> str:
    """A data set card: the header that the Hub reads, then what a person wants to know."""
    source, rows = manifest["source"], manifest["rows"]
    assert isinstance(source, Mapping)
    assert isinstance(rows, Mapping)
    tasks = [f"| {task} | {count} |" for task, count in rows["tasks"].items()]
    revision = f" at revision `{source['revision']}`" if source["revision"] else ""
    body = [
        "# Rows prepared for training",
        "",
        f"{rows['written']} of {rows['read']} rows of `{source['name']}`{revision}, prepared by "
        f"`{MADE_BY}` {__version__}. {rows['dropped']} rows were left out"
        + (f" and are listed in `{DROPPED}`." if rows["dropped"] else "."),
        "",
        "| task | rows |",
        "| --- | --- |",
        *tasks,
        "",
        "Columns: `problem`, `answer`, `images` (EasyR1 and others) and `data_source`, `prompt`, `images`, "
        f"`reward_model`, `extra_info` (veRL). `{MANIFEST}` has checksums, options and versions. The licence "
        "is that of the source.",
    ]
    return "\n".join([*card_head(splits), "", *body]) + "\n"


def card_head(splits: Sequence[str]) -> list[str]:
    """What the Hub reads of a data set card: which files are which split."""
    files = [f"  - split: {split}\n    path: {SHARDS}/{split}-*.parquet" for split in splits]
    head = ["---", "task_categories:", "- visual-question-answering", "tags:", "- tpru"]
    return [*head, "configs:", "- config_name: default", "  data_files:", *files, "---"]


def put_in_place(unfinished: Path, out: Path) -> None:
    """Two renames: a crash between them leaves the old folder beside the new one, whole."""
    replaced = out.absolute().with_name(f".{out.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    unfinished.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
