"""What an extra brings, as a CycloneDX list (SBOM), and whether holes are known in it.

    python benchmarks/sbom.py --extras base build     # lists, in outputs/sbom
    python benchmarks/sbom.py --extras base --audit   # and asks the service of advisories, which is online

pip chooses the versions, and installs nothing (`resolve.py`). cyclonedx-bom and pip-audit have to be there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import measure
import resolve

BASE = "base"


def pinned(extra: str, python: str) -> list[str]:
    """Lines `NAME==VERSION` of all that `extra` brings. Raises ValueError where pip finds none that agree."""
    asked = resolve.requirements()["" if extra == BASE else extra]
    versions, _ = resolve.resolved(python, asked)
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def main() -> None:
    names = [BASE, *filter(None, resolve.requirements())]
    parser = measure.parser(__doc__)
    parser.add_argument("--extras", nargs="+", choices=names, default=[BASE])
    parser.add_argument("--python", default="3.12", choices=resolve.PYTHONS)
    parser.add_argument("--out", type=Path, default=Path("outputs/sbom"))
    parser.add_argument("--audit", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for extra in args.extras:
        listed, bill = args.out / f"{extra}.txt", args.out / f"{extra}.json"
        lines = pinned(extra, args.python)
        listed.write_text("\n".join(lines) + "\n")
        make = [
            "cyclonedx_py",
            "requirements",
            str(listed),
            "--output-format",
            "JSON",
            "--output-file",
            str(bill),
        ]
        subprocess.run([sys.executable, "-m", *make], check=True)
        print(f"{bill}: {len(lines)} packages")
        if args.audit:
            # --strict: a package that the service does not know is no package without holes.
            ask = ["pip_audit", "--requirement", str(listed), "--no-deps", "--disable-pip", "--strict"]
            failed |= subprocess.run([sys.executable, "-m", *ask], check=False).returncode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
