"""Responses by the hash of what was asked: a run that was ended goes on, and asks nothing again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import xxhash


@dataclass(frozen=True)
class Reply:
    """What was answered to one request: a text for each sample, why each ended, and tokens in all."""

    texts: list[str] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    error: str | None = None  # why there is no answer; such a reply is not stored


class Store:
    """Replies in a file of one JSON object a line, appended as they come.

    A last line that an end cut short is dropped. Raises ValueError, with the line, for any other damage.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies: dict[str, Reply] = {}
        if path.exists():
            self._read()
        self._file = path.open("ab")

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    key = record.pop("key")
                    self._replies[key] = Reply(**record)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise ValueError(
                        f"{self.path} line {number}: found no stored reply ({error}); remove it"
                    ) from error
                whole += len(line)
        if whole < self.path.stat().st_size:
            with self.path.open("r+b") as file:
                file.truncate(whole)

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
        self._file.close()


def key_of(*facts: object, images: Sequence[bytes] = ()) -> str:
    """Hash of all that an answer depends on."""
    state = xxhash.xxh3_128(json.dumps(facts, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    for image in images:
        state.update(xxhash.xxh3_128_digest(image))
    return state.hexdigest()
