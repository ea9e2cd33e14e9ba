"""Milliseconds that the plugin adds to `import verl`, which every Ray worker and vLLM process of a run pays.

    python benchmarks/plugin_import.py

Each time in a fresh process that has imported veRL without it; the file cache is warm from the first one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from statistics import median

from rich.console import Console
from rich.table import Table

CODE = """
import os, time
import verl
del os.environ["VERL_USE_EXTERNAL_PLUGINS"]
begin, spent = time.perf_counter(), time.process_time()
import tpru_verl.plugin
print(time.perf_counter() - begin, time.process_time() - spent)
from tpru_verl.plugin import hooks
assert hooks._known
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    table = Table("platform", "ms", "least", "most", "CPU ms", title=f"medians of {args.runs} processes")
    for platform in ("cuda", "cpu"):
        environment = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": "none", "TPRU_PLUGIN_ANNOUNCED": "1"}
        environment.pop("VERL_PLATFORM", None)
        if platform == "cpu":
            environment["VERL_PLATFORM"] = "cpu"
        lines = []
        for _ in range(args.runs + 1):
            done = subprocess.run(
                [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
            )
            lines.append([1000 * float(value) for value in done.stdout.split()[-2:]])
        times, spent = zip(*lines[1:], strict=True)
        cells = (median(times), min(times), max(times), median(spent))
        table.add_row(platform, *(f"{value:.1f}" for value in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
