"""Looks for inputs on which a target raises, runs long or takes much memory: python tests/fuzz/run.py NAME.

Without a name each target runs in its turn, for its share of a minute. Further options go to libFuzzer, as
`-max_total_time=600`. New inputs are kept in outputs/fuzz. What fails lies there as `crash-...`,
`timeout-...` or `oom-...`, and belongs into the corpus once it is mended.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

HERE, OUT = Path(__file__).parent, Path("outputs", "fuzz")
SECONDS = 60  # of all targets together

with atheris.instrument_imports(include=["tpru_verl"]):  # pyright: ignore[reportAttributeAccessIssue]
    import targets


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        share = f"-max_total_time={SECONDS // len(targets.TARGETS)}"
        ends = [
            subprocess.run([sys.executable, __file__, name, share, *words], check=False).returncode
            for name in targets.TARGETS
        ]
        sys.exit(any(ends))
    name, *options = words
    if name not in targets.TARGETS:
        sys.exit(f"found {name}, expected one of {', '.join(targets.TARGETS)}")
    seen = OUT / name
    seen.mkdir(parents=True, exist_ok=True)
    bounds = ["-timeout=60", "-rss_limit_mb=3000", "-max_len=20000", f"-artifact_prefix={OUT}/"]
    folders = [str(seen), str(HERE / "corpus" / name)]
    atheris.Setup([sys.argv[0], *bounds, *options, *folders], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
