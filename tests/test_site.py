"""The site's hooks: links that work in the repository work on the site."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site_hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("folder", "text", "expected"),
    [
        ("docs", "[a](data.md#keys)", "[a](data.md#keys)"),
        ("docs", "[a](../benchmarks/RESULTS.md#gpu)", "[a](results.md#gpu)"),
        ("docs", "[a](../recipes/verl)", "a"),
        ("docs", "[a](https://example.org/x.md)", "[a](https://example.org/x.md)"),
        (".", "![a](docs/picture.png)", "![a](picture.png)"),
        (".", "[docs](docs/README.md)", "[docs](README.md)"),
        ("benchmarks", "[a](../docs/scale.md)", "[a](scale.md)"),
        ("docs", "[a](#here)", "[a](#here)"),
    ],
)
def test_a_link_of_a_page(hooks: Any, folder: str, text: str, expected: str) -> None:
    assert hooks.relinked(text, folder) == expected


def test_every_page_is_in_the_menu_once(hooks: Any) -> None:
    menu = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("nav:")[2])
    pages = [page.name for page in (ROOT / "docs").glob("*.md")]
    outer = [name for path, name in hooks.OUTER.items() if (ROOT / path).is_file()]
    assert sorted(menu) == sorted([*pages, *outer, "reference.md"])


def test_the_reference_has_the_public_modules(hooks: Any) -> None:
    assert "::: tpru_verl.grading\n" in hooks.reference()
    assert "::: tpru_verl.plugin\n" in hooks.reference()
