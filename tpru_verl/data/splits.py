"""Splits of rows: shares, sources that must stay together, and what the terminal says of them."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from tpru_verl.terminal import OptionError, counted

ONE_SPLIT = "train"  # where rows go that are not split


SHOWN_SCENES = 12  # in the terminal; the manifest has all
_NAME = re.compile(r"\w+")  # part of a file's name, and a split of `datasets`, which takes no more


def check_shares(split: Mapping[str, float] | None) -> None:
    """Raises ValueError for names that no split may have, and for shares that do not sum to 1."""
    if split is None:
        return
    for name in split:
        if not _NAME.fullmatch(name):
            raise OptionError(f"--split: found the name {name!r}, expected letters, digits and _ only")
    if any(not 0 < share <= 1 for share in split.values()) or abs(sum(split.values()) - 1) > 1e-6:
        found = ",".join(f"{name}={share:g}" for name, share in split.items())
        raise OptionError(f"--split: found {found}, expected shares over 0 that sum to 1")


def shared_out(sizes: Sequence[int], shares: Mapping[str, float], *, empty: bool = False) -> list[str]:
    """The split of each group, in the order given. Raises ValueError for an empty split, unless `empty`."""
    names, result = list(shares), list[str]()
    bounds = [sum(list(shares.values())[: i + 1]) * sum(sizes) for i in range(len(names))]
    done = 0
    for size in sizes:
        middle = done + size / 2
        result.append(next((n for n, bound in zip(names, bounds, strict=True) if middle < bound), names[-1]))
        done += size
    missing = [name for name in names if name not in result]
    if missing and not empty:
        found = f"{counted(len(sizes), 'group')} of rows that share a source or a picture"
        expected = f"expected enough for {missing[0]}={shares[missing[0]]:g}"
        cure = "leave --split out" if len(sizes) < len(names) else "make its share larger"
        kept = "a group stays in one split, so add sources"
        raise ValueError(f"--split: found {found}, {expected}; {kept}, {cure}")
    return result


def shared_picture(shown: Iterable[tuple[str, str, Sequence[bytes]]]) -> str:
    """The picture that most sources show, where several do; else "".

    `shown`: the name, the source, and the digests of the pictures of each row or clip.
    """
    sources: dict[bytes, dict[str, str]] = {}  # of a picture: each source, and where the picture is in it
    for name, source, pictures in shown:
        for place, picture in enumerate(pictures, 1):
            sources.setdefault(picture, {}).setdefault(source, f"picture {place} of {name}")
    most = max(sources.values(), key=len, default={})
    one, other, *_ = *most.values(), "", ""
    return f"{len(most)} sources show the same picture: {one}, {other}" if len(most) > 1 else ""


def lone_scene(scenes: Mapping[str, Collection[str]]) -> str:
    """What is wrong with a split of one scene where there are others: it measures that scene alone; else "".

    `scenes`: those of each split. A source of one scene, or without names of scenes, passes.
    """
    every = {scene for names in scenes.values() for scene in names}
    for split, names in sorted(scenes.items()):
        if len({*names}) < 2 <= len(every):
            found = f"found the scene {min(names)} alone in {split}, of {len(every)}"
            return f"--split: {found}, expected several; change --seed or the shares"
    return ""


def connected(keys: Sequence[Sequence[str | bytes]]) -> list[int]:
    """Number of the group of each item. Items with a key in common are in one group (union-find)."""
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


def rows_table(rows: Mapping[str, Any], title: str) -> Table:
    """Rows by task and by scene, a column for each split.

    `rows`: "written", and for each split its "splits" (rows), "tasks" and "scenes" (rows of each).
    """
    splits = sorted(rows["splits"])
    table = Table("", *splits, "all", title=title)
    for part in ("tasks", "scenes"):
        counted = rows[part]
        total = Counter[str]()
        for split in splits:
            total.update(counted.get(split, {}))
        names = sorted(total, key=lambda name: (-total[name], name)) if part == "scenes" else sorted(total)
        for name in names[:SHOWN_SCENES]:
            numbers = [counted.get(split, {}).get(name, 0) for split in splits]
            table.add_row(escape(name or "no scene named"), *map(str, numbers), str(total[name]))
        if others := names[SHOWN_SCENES:]:
            numbers = [sum(counted.get(split, {}).get(name, 0) for name in others) for split in splits]
            table.add_row(f"{len(others)} other {part}", *map(str, numbers), str(sum(numbers)))
        table.add_section()
    table.add_row("rows", *(str(rows["splits"][split]) for split in splits), str(rows["written"]))
    return table


def view_commands(out: Path, splits: Collection[str]) -> Iterator[str]:
    """The command that shows the rows of a result, a line for each of its splits."""
    for split in sorted(splits):
        shown, page = (f"{out}@{split}", split) if len(splits) > 1 else (str(out), "rows")
        yield f"  tpru data view {shlex.quote(shown)} --out {page}.html"
