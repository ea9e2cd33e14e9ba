"""`tpru data prepare`: writes shards that veRL, EasyR1 and `datasets` read, with a manifest and a card."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import xxhash

from tpru_verl import __version__
from tpru_verl.data.frameworks import MS_SWIFT, TRL, VERL, columns_for, record_for
from tpru_verl.data.layout import (
    CARD,
    COLUMNS,
    DROPPED,
    IMAGE,
    MANIFEST,
    Record,
    Shards,
    card_head,
    checksum_of,
    record_of,
    result_folder,
)
from tpru_verl.data.source.forms import Form, Source, Unit, columns_of
from tpru_verl.data.source.parts import Part, check_outside
from tpru_verl.data.source.rows import Row, read_batches
from tpru_verl.data.splits import ONE_SPLIT, check_shares, connected, lone_scene, shared_out, shared_picture
from tpru_verl.data.tokens.prompts import Asked
from tpru_verl.data.validate import Finding, Report, SeenRow, check_units, compare_rows, summary_of
from tpru_verl.data.work import each_unit
from tpru_verl.files import locked, write_json, write_text
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    from tpru_verl.data.tokens.prompts import PromptCounter

MADE_BY = "tpru data prepare"

_KEPT = {"task", "scene", "source_id", "id", "data_source"}  # columns, or keys of `extra_info`
_OURS = {"row_id", "index", "problem", "prompt_template"}  # keys that are written anew
_COUNTS: dict[str, pa.DataType] = {"prompt_tokens": pa.int32(), "prompt_tokens_key": pa.string()}


@dataclass(frozen=True)
class PrepareOptions:
    """The options that, with the source, decide every byte of the result."""

    seed: int = 0
    template: str = "tpru"
    # Share of each split, such as {"train": 0.95, "test": 0.05}; rows of one source stay together.
    split: Mapping[str, float] | None = None
    drop_invalid: bool = False
    deep: bool = False
    allow: bool = False  # a split that is empty, or of one scene where there are others
    framework: str = VERL  # one of FRAMEWORKS, whose columns are written


def prepare(
    source: Source,
    out: Path,
    options: PrepareOptions,
    *,
    against: Source | None = None,
    counter: PromptCounter | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write shards, manifest and card to `out`, whole or not at all; returns the manifest.

    The images' bytes are those of the source. An earlier result in `out` is replaced by the new one.

    Raises:
        FileExistsError: `out` holds something else.
        RuntimeError: another process is writing to `out`.
        ValueError: unusable rows without `drop_invalid`, or nothing left, or shares that are none, or `out`
            lies in a source or holds one.
        OSError: no space left.
    """
    check_shares(options.split)
    check_outside(out, *source.places, *(against.places if against else ()))
    report = Report.of(source)
    with locked(out), result_folder(out) as unfinished:
        try:
            with _Writer(source, unfinished, options, counter) as writer:
                splits = _check_and_write(writer, report, against, workers)
                files = writer.finish()
                report.findings += writer.findings
            manifest = _manifest(writer, report, splits, files)
            write_json(unfinished / MANIFEST, manifest)
            if report.unusable:
                findings = [asdict(f) for f in report.findings if (f.file, f.row) in report.unusable]
                write_json(unfinished / DROPPED, findings)
            write_text(unfinished / CARD, _card(manifest, sorted(writer.shards)))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OSError(f"{out}: no space left, after {_size(unfinished) / 2**20:.0f} MiB") from error
            raise
    return manifest


def _check_and_write(
    writer: _Writer, report: Report, against: Source | None, workers: int | None
) -> Mapping[tuple[str, int], str]:
    """Check all rows and write them: at the same time, unless splits or test rows need all rows first.

    Returns the split of each (file, row).
    """
    source, options = writer.source, writer.options
    checked = check_units(
        source,
        report,
        deep=options.deep,
        hashes=against is not None,
        workers=workers,
        reserved=writer.counter.reserved if writer.counter else (),
    )
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
    if at_once:
        return {(row.file, row.row): ONE_SPLIT for row in kept}
    splits = _splits(kept, options)
    if not options.allow:
        scenes: dict[str, set[str]] = {}
        for row in kept:
            scenes.setdefault(splits[row.file, row.row], set()).add(row.scene)
        if problem := lone_scene(scenes):
            raise ValueError(f"{problem}, or use --allow")
    for unit, _ in each_unit(source, _nothing, title="Writing shards", workers=1):
        writer.write(unit, splits)
    return splits


def _nothing(unit: Unit, form: Form) -> None:
    """Writing needs the units alone."""


def _kept(report: Report) -> list[SeenRow]:
    unusable = report.unusable
    return [row for row in report.seen if (row.file, row.row) not in unusable]


def _splits(rows: Sequence[SeenRow], options: PrepareOptions) -> dict[tuple[str, int], str]:
    """Split of each (file, row). Rows that share a source or a picture are one group and stay together."""
    shares = options.split or {ONE_SPLIT: 1.0}
    groups = _groups(rows)
    by_group: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        by_group.setdefault(group, []).append(i)
    # By content, so that neither the order of files nor of rows moves a row to another split.
    drawn = sorted(by_group.values(), key=lambda group: _draw(options.seed, rows, group))
    try:
        names = shared_out([len(group) for group in drawn], shares, empty=options.allow)
    except ValueError as error:
        same = shared_picture((row.id, row.group or row.id, row.images) for row in rows)
        raise ValueError(f"{error}, or use --allow{f'; {same}' if same else ''}") from None
    return {
        (rows[i].file, rows[i].row): name for name, group in zip(names, drawn, strict=True) for i in group
    }


def _draw(seed: int, rows: Sequence[SeenRow], group: Sequence[int]) -> bytes:
    return xxhash.xxh3_128_digest(min(rows[i].digest for i in group), seed)


def _groups(rows: Sequence[SeenRow]) -> list[int]:
    """Number of each row's group: connected by `source_id` or by an identical image."""
    return connected([(*row.images, *([row.group] if row.group else [])) for row in rows])


def _extra_info(source: Source) -> pa.DataType:
    """The type of the column. Where rows may come with messages, it says whose work `prompt` is.

    `prompt_template` is the template that made `prompt`, "" where `prompt` holds the messages of the source.
    """
    kinds = zip(source.parts, source.forms, strict=True)
    own = any(
        form.kind in ("verl", "chat") or {"prompt", "extra_info"} <= {*columns_of(part)}
        for part, form in kinds
    )
    fields = [*cast(pa.StructType, COLUMNS["extra_info"])]
    return pa.struct([*fields, *([pa.field("prompt_template", pa.string())] if own else [])])


class _Writer:
    """The shards of all splits."""

    def __init__(
        self, source: Source, folder: Path, options: PrepareOptions, counter: PromptCounter | None
    ) -> None:
        self.source, self.folder, self.options, self.counter = source, folder, options, counter
        self.shards: dict[str, Shards] = {}
        self.findings: list[Finding] = []  # of rows whose prompts cannot be counted
        self.extra_keys: set[str] = set()  # that `extra_info` of the rows has
        columns = {**COLUMNS, **(_COUNTS if counter else {}), "extra_info": _extra_info(source)}
        self._columns = columns_for(options.framework, columns)
        # Checksums need no interpreter: beside writing they cost next to nothing.
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, unit: Unit, splits: Mapping[tuple[str, int], str]) -> None:
        """Write each of the unit's rows to its split; `splits` maps (file, row) to a name."""
        for rows, images in read_batches(unit, self.source.form(unit)):
            chosen: dict[str, list[int]] = {}
            for i, row in enumerate(rows):
                if name := splits.get((row.file, row.number)):
                    chosen.setdefault(name, []).append(i)
            counts = self._counts(rows, chosen)
            for name, numbers in chosen.items():
                shard = self.shards.get(name) or Shards(self.folder, name, self._columns, self._pool)
                self.shards[name] = shard
                counted = [i for i in numbers if not isinstance(counts.get(i), Exception)]
                shard.add(self._table(rows, images, counted, shard, counts))

    def _counts(self, rows: Sequence[Row], chosen: Mapping[str, Sequence[int]]) -> dict[int, int | Exception]:
        """Tokens of the chosen rows' prompts, where they are to be stored.

        A row without a count is a finding. Raises ValueError for it, unless such rows are left out.
        """
        if self.counter is None:
            return {}
        numbers = [i for group in chosen.values() for i in group]
        counts = dict(zip(numbers, self.counter.counts([Asked.of(rows[i]) for i in numbers]), strict=True))
        uncounted = [Finding.of(rows[i], line_of(e)) for i, e in counts.items() if isinstance(e, Exception)]
        self.findings += uncounted
        if uncounted and not self.options.drop_invalid:
            raise ValueError(f"{uncounted[0]}; --drop-invalid leaves such rows out and lists them")
        return counts

    def _table(
        self,
        rows: Sequence[Row],
        images: pa.Array | None,
        chosen: Sequence[int],
        shard: Shards,
        counts: Mapping[int, int | Exception],
    ) -> pa.Table:
        """The chosen rows as the framework reads them."""
        self.extra_keys.update(*(rows[i].extra for i in chosen))
        records = [_record(rows[i], self.options.template, shard.rows + n) for n, i in enumerate(chosen)]
        if self.counter:
            for i, record in zip(chosen, records, strict=True):
                record |= {"prompt_tokens": counts[i], "prompt_tokens_key": self.counter.key}
        records = [record_for(self.options.framework, record) for record in records]
        columns = {
            name: pa.array([record[name] for record in records], shard.schema.field(name).type)
            for name in shard.schema.names
            if name != "images"
        }
        columns["images"] = _images(rows, images, chosen)
        return pa.table([columns[name] for name in shard.schema.names], schema=shard.schema)

    def finish(self) -> list[dict[str, object]]:
        """Close all shards, and describe them."""
        return [file for _, shard in sorted(self.shards.items()) for file in shard.finish()]


def _record(row: Row, template: str, index: int) -> Record:
    names = {"scene": row.field("scene"), "source_id": row.source_id, "row_id": row.row_id}
    given = row.field("data_source")
    names["prompt_template"] = template if row.messages is None else ""
    record = record_of(str(row.problem), str(row.answer).strip(), row.task, names, template, index)
    record["prompt"] = row.messages or record["prompt"]
    record["data_source"] = given or record["data_source"]
    return record


def _images(rows: Sequence[Row], images: pa.Array | None, chosen: Sequence[int]) -> pa.Array:
    """The chosen rows' images as {bytes, path}. Images of a table are taken without copying each one."""
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
        pa.array(starts, pa.int32()), pa.StructArray.from_arrays(columns, fields=list(IMAGE))
    )


def _lies_in_table(row: Row) -> bool:
    return isinstance(row.cells, list) and all(isinstance(cell, memoryview) for cell in row.cells)


def _manifest(
    writer: _Writer, report: Report, splits: Mapping[tuple[str, int], str], files: list[dict[str, object]]
) -> dict[str, object]:
    source, counter, kept = writer.source, writer.counter, _kept(report)
    left_out = {name for part in source.parts for name in _left_out(part, source)}
    left_out |= {f"extra_info.{key}" for key in writer.extra_keys - _KEPT - _OURS}
    return {
        "made_by": MADE_BY,
        "source": {
            "name": Path(source.name).name if source.parts[0].path else source.name,
            "revision": source.revision,
            "read_as": report.detected,
            "files": [_described(part) for part in source.parts],
            "columns_left_out": sorted(left_out),
        },
        "options": {**asdict(writer.options), "prompt_tokens_key": counter.key if counter else None},
        "rows": {
            "read": report.rows,
            "dropped": len(report.unusable),
            "written": len(kept),
            "tasks": dict(sorted(Counter(row.task or "not recognised" for row in kept).items())),
            "splits": dict(sorted(Counter(splits[row.file, row.row] for row in kept).items())),
            "by_split": _by_split(kept, splits),
        },
        "files": files,
        "versions": {"tpru_verl": __version__, "pyarrow": pa.__version__},
    }


def _by_split(
    kept: Sequence[SeenRow], splits: Mapping[tuple[str, int], str]
) -> dict[str, dict[str, dict[str, int]]]:
    """Rows of each task and scene, for each split."""
    found: dict[str, dict[str, Counter[str]]] = {"tasks": {}, "scenes": {}}
    for row in kept:
        split = splits[row.file, row.row]
        for name, value in (("tasks", row.task or "not recognised"), ("scenes", row.scene)):
            found[name].setdefault(split, Counter())[value] += 1
    return {
        name: {split: dict(sorted(counts.items())) for split, counts in sorted(by_split.items())}
        for name, by_split in found.items()
    }


def _left_out(part: Part, source: Source) -> set[str]:
    form = source.forms[source.parts.index(part)]
    return {*columns_of(part)} - {*form.used, *_KEPT, "extra_info", *form.options}


def _described(part: Part) -> dict[str, object]:
    if part.path is None:
        return {"name": part.name, "rows": len(part.hub or ())}
    size, checksum = part.path.stat().st_size, checksum_of(part.path, xxhash.xxh3_128())
    return {"name": part.path.name, "bytes": size, "xxh3_128": checksum}


_READERS = {
    VERL: "`problem`, `answer`, `images` (EasyR1 and others) and `data_source`, `prompt`, `images`, "
    "`reward_model`, `extra_info` (veRL)",
    TRL: "`prompt`, `images`, `answer`, `extra_info` (TRL)",
    MS_SWIFT: "`messages`, `images`, `solution`, `extra_info` (ms-swift)",
}


def _card(manifest: Mapping[str, object], splits: Sequence[str]) -> str:
    """A data set card: the header that the Hub reads, then what a person wants to know."""
    source, rows, options = manifest["source"], manifest["rows"], manifest["options"]
    assert isinstance(source, Mapping)
    assert isinstance(rows, Mapping)
    assert isinstance(options, Mapping)
    files = cast("list[dict[str, object]]", manifest["files"])
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
        f"Columns: {_READERS[str(options['framework'])]}. `{MANIFEST}` has checksums, options and versions. "
        "The licence is that of the source.",
    ]
    return "\n".join([*card_head(splits, files), "", *body]) + "\n"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
