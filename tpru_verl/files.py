"""Files that appear whole or not at all: under a temporary name first, so that a crash leaves old or new."""

from __future__ import annotations

import json
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def write_text(path: Path, text: str) -> None:
    """As UTF-8; half a character, which JSON may hold, becomes an escape."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, content: object) -> None:
    """Indented, so that two results can be compared line by line."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
