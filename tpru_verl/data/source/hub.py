"""Data sets of the Hub, on disk and not in memory, with their images encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from tpru_verl.terminal import line_of, needs

if TYPE_CHECKING:
    import datasets


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
