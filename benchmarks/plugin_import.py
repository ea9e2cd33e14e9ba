"""Milliseconds that the plugin adds to `import verl`, in every Ray worker and vLLM process of a run.

    python benchmarks/plugin_import.py

Each measurement is a new process that has imported veRL without the plugin. A first one, not counted, fills
the file cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from statistics import median

import measure

CODE = """
import os, time
import verl
del os.environ["VERL_USE_EXTERNAL_PLUGINS"]
begin, spent = time.perf_counter(), time.process_time()
import tpru_verl.plugin
print(time.perf_counter() - begin, time.process_time() - spent)
from tpru_verl.plugin import hooks
assert hooks.registered()
"""


def milliseconds(environment: dict[str, str]) -> list[float]:
    """What the import takes in a new process: milliseconds, and milliseconds of processor time."""
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [1000 * float(value) for value in done.stdout.split()[-2:]]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    cuda = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": "none", "TPRU_PLUGIN_ANNOUNCED": "1"}
    cuda.pop("VERL_PLATFORM", None)
    environments = {"cuda": cuda, "cpu": {**cuda, "VERL_PLATFORM": "cpu"}}
    found = measure.in_turn(
        {name: partial(milliseconds, environment) for name, environment in environments.items()},
        args.runs,
        warm_up=1,
    )
    rows = [["platform", "ms", *measure.SPREAD, "CPU ms"]]
    for platform, runs in found.items():
        times, spent = zip(*runs, strict=True)
        rows.append([platform, *measure.spread(times, ".1f"), f"{median(spent):.1f}"])
    print(measure.markdown(rows, f"Medians of {args.runs} processes"))


if __name__ == "__main__":
    main()
