"""Replies on disk, by the hash of their request: an interrupted run continues, and nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import xxhash

from tpru_verl.files import PRIVATE

CUT_OFF = "length"  # how a response ends that reached its most tokens, as OpenAI and vLLM call it


@dataclass(frozen=True)
class Reply:
    """The answer to one request: a text for each sample, why each ended, and tokens in all.

    `scores` are the log-probabilities of the valid answers, where these were asked for; if they are not
    `exact`, those of some that are not the answer are the most that they can be.
    A reply with `error` has no texts and is not stored. Raises ValueError for a reply with neither, and for
    texts that are no text.
    """

    texts: list[str] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    scores: dict[str, float] | None = None
    exact: bool = True
    error: str | None = None

    def __post_init__(self) -> None:
        if self.error is not None:
            return
        for name in ("texts", "finish"):
            values = getattr(self, name)
            if not (isinstance(values, list) and values and all(isinstance(value, str) for value in values)):
                raise ValueError(f"{name}: found {str(values)[:60]}, expected a list of texts")
        if len(self.texts) != len(self.finish):
            raise ValueError(
                f"finish: found {len(self.finish)}, expected {len(self.texts)}, one for each text"
            )
        for name in ("prompt_tokens", "tokens"):
            value = getattr(self, name)
            if not isinstance(value, int):
                raise ValueError(f"{name}: found {str(value)[:60]}, expected a whole number")


class Store:
    """Replies in a file of one JSON object a line. Each is appended as soon as it comes.

    A last line that was cut short is dropped. `unusable` has the keys of stored replies that are no text;
    their requests are asked again. Raises ValueError, with the line, for any other damage.
    """

    unusable: frozenset[str] = frozenset()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies: dict[str, Reply] = {}
        if path.exists():
            self._read()
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE), "ab")

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                self._add(number, line)
                whole += len(line)
        if whole < self.path.stat().st_size:
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def _add(self, number: int, line: bytes) -> None:
        try:
            record = json.loads(line)
            key = str(record.pop("key"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{self.path} line {number}: found no stored reply ({error}); remove it"
            ) from error
        try:
            self._replies[key] = Reply(**record, error=None)
            self.unusable -= {key}
        except (ValueError, TypeError):
            self.unusable |= {key}

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply, on disk first. Raises OSError, such as for a full disk; all before it are kept."""
        record = {"key": key, **{name: value for name, value in asdict(reply).items() if name != "error"}}
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"{self.path}: {error}; {len(self)} responses are kept, the same command goes on from there"
            ) from error
        self._replies[key] = reply

    def close(self) -> None:
        """Close the file. It goes if it is empty: no reply came."""
        self._file.close()
        if not self._replies and self.path.is_file() and not self.path.stat().st_size:
            self.path.unlink()


def key_of(*facts: object, images: Sequence[bytes] = ()) -> str:
    """Hash of everything that an answer depends on."""
    state = xxhash.xxh3_128(json.dumps(facts, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    for image in images:
        state.update(xxhash.xxh3_128_digest(image))
    return state.hexdigest()


def digest_of(options: Mapping[str, object]) -> str:
    """Hash of the options with their true values, from which no secret among them can be read."""
    facts = json.dumps(options, sort_keys=True, default=str)
    return hashlib.sha256(facts.encode("utf-8", "surrogatepass")).hexdigest()
