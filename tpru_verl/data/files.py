"""Files that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Under a temporary name first: a crash leaves the old file or the new one."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def write_json(path: Path, content: object) -> None:
    """As `write_text`; indented, so that two results can be compared line by line."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
