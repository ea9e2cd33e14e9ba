"""The interface of an engine: it takes requests and yields (request, reply) as replies come, in any order.

A request that cannot be answered has a reply with an `error`. An engine raises only if it cannot answer the
remaining requests either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tpru_verl.data.tokens.pixels import Bounds
from tpru_verl.eval.decide import GENERATE
from tpru_verl.eval.item import Item
from tpru_verl.eval.store import Reply
from tpru_verl.sample import IMAGE_TAG

TAG = re.compile(f"({IMAGE_TAG})")


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled. Raises ValueError for `n` > 1 at temperature 0: all answers would be equal."""

    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n > 1 and not self.temperature:
            raise ValueError(f"n: found {self.n} at temperature 0, expected --temperature above 0, or 1")
        if self.n < 1 or self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"sampling: found {self}, expected n, max_tokens >= 1, temperature >= 0, 0 < top_p <= 1"
            )


@dataclass(frozen=True)
class Request:
    """One prompt, with an `<image>` tag for each image of its item. `key` is the hash of all that it asks.

    `decide` is one of `DECIDES`; for `guided` and `score`, `candidates` are the valid answers. The response
    begins with `opening`, and ends before `stop` where that is given. `cut_off`: the reasoning in `opening`
    reached its most tokens.
    """

    key: str
    item: Item
    prompt: str
    decide: str = GENERATE
    candidates: tuple[str, ...] = ()
    opening: str = ""
    stop: str = ""
    cut_off: bool = False


class Engine(Protocol):
    """Something that answers requests.

    Stored replies are valid for one `identity`: the model, and whatever else a reply depends on beside the
    request, `sampling` and `bounds`. It is final after `identify`, which may keep facts about a server in
    the file `kept`. `description` goes into summary.json.
    """

    identity: str
    sampling: Sampling
    bounds: Bounds

    def description(self) -> dict[str, object]: ...
    def identify(self, kept: Path) -> None: ...
    def start(self, requests: Sequence[Request]) -> None: ...
    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Reply]]: ...
    def close(self) -> None: ...


def parts_of(prompt: str) -> list[str]:
    """Texts and tags in the order of the prompt, without empty texts."""
    return [part for part in TAG.split(prompt) if part]


def prepared_images(item: Item, bounds: Bounds) -> list[Any]:
    """The pictures of an item, resized. Raises ValueError with the number of one that cannot be decoded."""
    found = []
    for i, image in enumerate(item.images):
        try:
            found.append(bounds.prepared(image))
        except ValueError as error:
            raise ValueError(f"images[{i}]: {error}") from error
    return found
