"""What mkdocs does with the pages, so that their links work on the site as they do in the repository.

Pages outside docs/ join the site, and a link to a file that is no page becomes plain text. The reference is
made from the headings of docs/public-names.md.
"""

import re
from pathlib import Path
from posixpath import normpath
from typing import Any

ROOT = Path(__file__).parent.parent
# Pages of the repository and their names on the site; README.md of docs/ is the site's first page.
OUTER = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/RESULTS.md": "results.md",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def relinked(text: str, folder: str) -> str:
    """The text of a page in `folder`, with the links of the site, whose pages lie in one folder."""

    def link(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        path, sign, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        path = normpath(f"{folder}/{path}")
        name = OUTER.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
        return f"{mark}[{words}]({name}{sign}{anchor})" if name else words

    return _LINK.sub(link, text)


def reference() -> str:
    """A page with the docstrings of the public modules."""
    page = (ROOT / "docs/public-names.md").read_text(encoding="utf-8")
    modules = re.findall(r"^## `(tpru_verl[\w.]*)`", page, re.MULTILINE)
    return "# Reference\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for path, name in OUTER.items():
        if (ROOT / path).is_file():
            text = relinked((ROOT / path).read_text(encoding="utf-8"), str(Path(path).parent))
            files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return markdown if page.file.generated_by else relinked(markdown, "docs")
