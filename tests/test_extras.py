"""A hint to install an extra can be pasted where it is read."""

import json
import shlex
from pathlib import Path

import pytest

from tpru_verl import extras
from tpru_verl.extras import install_command


class Installed:
    """Stands for the metadata of an installation; `record` is its direct_url.json (PEP 610)."""

    def __init__(self, record: object) -> None:
        self.record = record

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.record is None else json.dumps(self.record)


@pytest.mark.parametrize(("options", "kind"), [({"editable": True}, ["--editable"]), ({}, [])])
def test_the_clone_is_named(
    options: object, kind: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "a clone"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    found = Installed({"url": clone.as_uri(), "dir_info": options})
    monkeypatch.setattr(extras, "distribution", lambda name: found)
    assert shlex.split(install_command("build")) == ["pip", "install", *kind, f"{clone}[build]"]


@pytest.mark.parametrize(
    "record",
    [
        None,  # from an index
        {"url": "file:///gone/clone", "dir_info": {}},
        {"url": "file:///some/tpru_verl-0.2.0-py3-none-any.whl", "archive_info": {}},
        {"url": "https://host/repository", "vcs_info": {}},
        [],
    ],
)
def test_without_a_clone_the_words_say_where(record: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "distribution", lambda name: Installed(record))
    assert install_command("eval") == 'pip install ".[eval]" in a clone of this project'


def test_no_hint_names_the_package_on_an_index(root: Path) -> None:
    """It is on none, and whoever took the name there could run code on a user's machine."""
    pages = [root / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    for file in [*pages, *(root / "docs").glob("*.md"), *(root / "tpru_verl").rglob("*.py")]:
        assert "install tpru" not in file.read_text().replace('"', "").replace("'", ""), file
