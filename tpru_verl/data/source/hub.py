"""Data sets of the Hub, on disk and not in memory, with their images encoded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tpru_verl.hub import offline
from tpru_verl.terminal import line_of, needs

if TYPE_CHECKING:
    import datasets

WHOLE_GROUP = 2**30  # bytes of a row group; beyond 2 GiB Arrow does not read a column of lists as a whole
PIECE_ROWS = 64


def load_hub(
    name: str, split: str = "", *, revision: str | None = None, config: str | None = None
) -> datasets.Dataset:
    """A data set of the Hub, on disk and not in memory; `split` may be left out where there is only one.

    Raises ValueError for a split that is not there, and with the Hub's reason for what cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise needs("build", "datasets", f"{name}: reading from the Hub") from error
    try:
        splits = [str(s) for s in datasets.get_dataset_split_names(name, config, revision=revision)]
    except Exception as error:
        raise ValueError(
            f"{name}: no file or folder of this name, and not readable from the Hub: {line_of(error)}"
        ) from error
    if (split or len(splits) != 1) and split not in splits:
        found = ", ".join(f"{name}@{s}" for s in splits)
        raise ValueError(f"{name}{'@' * bool(split)}{split}: expected one of its splits: {found}")
    try:
        rows = datasets.load_dataset(name, config, split=split or splits[0], revision=revision)
    except Exception as error:
        raise ValueError(f"{name}: not readable from the Hub: {line_of(error.__cause__ or error)}") from error
    return undecoded(cast("datasets.Dataset", rows))


def dataset_files(name: str, *patterns: str) -> Path:
    """A folder of the cache with those files of a data set of the Hub; none is loaded twice.

    Raises ValueError, in one line, where it cannot be had.
    """
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError as error:
        raise needs("build", "huggingface_hub", f"{name}: reading from the Hub") from error
    # Not where the cache keeps files: its links lead out of the folder, and such links are not followed.
    folder = Path(constants.HF_HUB_CACHE) / "tpru" / name
    if why := offline():
        if folder.is_dir():
            return folder
        raise ValueError(f"{name}: found no such folder, and {why}; download it, and give its folder")
    try:
        snapshot_download(name, repo_type="dataset", local_dir=folder, allow_patterns=[*patterns])
    except Exception as error:  # the Hub's many kinds
        raise ValueError(
            f"{name}: no file or folder of this name, and not readable from the Hub: {line_of(error)}"
        ) from error
    return folder


def load_file(path: Path, kind: str) -> datasets.Dataset:
    """A file of this machine, on disk as `datasets` keeps it, not in memory. Raises what reading raises."""
    import datasets

    if kind == "parquet" and _largest_group(path) > WHOLE_GROUP:
        return undecoded(_in_pieces(path))
    loaded = datasets.load_dataset(kind, data_files=str(path), split="train")
    return undecoded(cast("datasets.Dataset", loaded))


def _largest_group(path: Path) -> int:
    """Bytes, unpacked, of the largest row group of a parquet file."""
    metadata = pq.read_metadata(path)
    return max(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def _in_pieces(path: Path) -> datasets.Dataset:
    """The rows of a parquet file with large row groups, which `datasets` would read as a whole.

    They are kept in its cache; a file of it appears whole or not at all.
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter
    from datasets.config import HF_DATASETS_CACHE

    status = path.stat()
    digest = xxhash.xxh3_128_hexdigest(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    kept = Path(HF_DATASETS_CACHE) / "tpru" / f"{digest}.arrow"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_name(f".{digest}.{os.getpid()}")
        try:
            with pq.ParquetFile(path) as file:
                features = datasets.Features.from_arrow_schema(file.schema_arrow)
                with ArrowWriter(path=str(unfinished), features=features) as writer:
                    for batch in file.iter_batches(PIECE_ROWS):
                        writer.write_table(pa.Table.from_batches([batch]))
                    writer.finalize()
            unfinished.replace(kept)
        finally:
            unfinished.unlink(missing_ok=True)
    return datasets.Dataset.from_file(str(kept))


def undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows with images as encoded bytes: decoding what is only passed on would be for nothing."""
    import datasets

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            rows = rows.cast_column(name, type(feature)(datasets.Image(decode=False)))
    return rows


def commit_of(name: str, revision: str | None) -> str | None:
    """What a branch stands for now, so that one commit is read and written down."""
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(name, revision=revision).sha
    except Exception:  # no network, or no such data set: `load_hub` has the cache, or the message
        return revision
