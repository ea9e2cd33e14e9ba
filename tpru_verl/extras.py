"""How an extra of this package is installed here: every hint in a message comes from this place."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit


def install_command(extra: str) -> str:
    """The command for an extra: it names the clone that this package came from, and works in any folder.

    Without such a clone, as in an image or from a wheel, the words say where to run it. The package is on no
    index, where somebody else could take its name.
    """
    try:
        found = json.loads(distribution("tpru-verl").read_text("direct_url.json") or "{}")
        clone = Path(unquote(urlsplit(found["url"]).path))
        editable = bool(found["dir_info"].get("editable"))
    except (PackageNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        clone, editable = Path(), False
    if not clone.is_absolute() or not (clone / "pyproject.toml").is_file():
        return f'pip install ".[{extra}]" in a clone of this project'
    return f'pip install {"--editable " if editable else ""}"{clone}[{extra}]"'
