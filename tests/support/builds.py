"""`tpru build`, run as a user would, and what it wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tpru_verl import cli
from tpru_verl.builder.commands import PARTLY

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `tpru build SOURCE OUT ...` in this process; returns the manifest, or raises SystemExit."""

    def run(source: object, out: str = "out", *options: object) -> dict[str, Any]:
        arguments = ["tpru", "build", source, tmp_path / out, "--no-audit", "--workers", 1, *options]
        monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        if stop.value.code not in (0, PARTLY):
            raise stop.value
        manifest = json.loads((tmp_path / out / "manifest.json").read_text())
        assert stop.value.code == (PARTLY if "unreadable" in manifest["left_out"] else 0)
        return manifest

    return run


def provenance(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "provenance.jsonl").read_text().splitlines()
    return {line["row_id"]: line for line in map(json.loads, lines)}
