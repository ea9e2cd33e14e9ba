"""Splits of rows: shares, and sources that must stay together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

ONE_SPLIT = "train"  # where rows go that are not split


_NAME = re.compile(r"\w+")  # part of a file's name, and a split of `datasets`, which takes no more


def check_shares(split: Mapping[str, float] | None) -> None:
    """Raises ValueError for names that no split may have, and for shares that do not sum to 1."""
    if split is None:
        return
    for name in split:
        if not _NAME.fullmatch(name):
            raise ValueError(f"--split: found the name {name!r}, expected letters, digits and _ only")
    if any(not 0 < share <= 1 for share in split.values()) or abs(sum(split.values()) - 1) > 1e-6:
        found = ",".join(f"{name}={share:g}" for name, share in split.items())
        raise ValueError(f"--split: found {found}, expected shares over 0 that sum to 1")


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
