"""Simulators as sources. Anyone can play the same episodes again, with the true text of each step.

A simulator is a module with three names: `KINDS`, the tasks that it plays in turn; `play(kind, rng)`, which
yields the frames of one episode; and `SCENE_BY_KIND`, which is true when each kind is a scene of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from tpru_verl.builder.clips import Frame
from tpru_verl.terminal import needs

NAMES = ("bricks", "gui", "metaworld", "minigrid")


@dataclass(frozen=True)
class Simulated:
    """One episode; the same name, seed and number give the same one."""

    usual_frames: ClassVar[int] = 32
    name: str
    seed: int
    number: int

    @property
    def id(self) -> str:
        return f"{self.name}-{self.seed}-{self.number:06d}"

    @property
    def kind(self) -> str:
        kinds = _module(self.name).KINDS
        return kinds[self.number % len(kinds)]

    @property
    def scene(self) -> str:
        return f"{self.name}/{self.kind}" if _module(self.name).SCENE_BY_KIND else self.name

    @property
    def group(self) -> str:
        return self.id

    def files(self) -> Sequence[Path]:
        return ()

    def frames(self) -> Iterator[Frame]:
        rng = np.random.default_rng([self.seed, self.number])
        return _module(self.name).play(self.kind, rng)


def episodes_of(name: str, episodes: int, seed: int) -> Iterator[Simulated]:
    """That many episodes of a simulator. Raises ValueError for one that is not known or not installed."""
    if name not in NAMES:
        known = ", ".join(f"sim:{known}" for known in NAMES)
        raise ValueError(f"sim:{name}: no such simulator, expected {known}")
    _module(name)
    yield from (Simulated(name, seed, number) for number in range(episodes))


def _module(name: str):
    try:
        return importlib.import_module(f"tpru_verl.builder.sims.{name}")
    except ImportError as error:
        raise needs("build-sims", str(error.name or error), f"sim:{name}") from error
