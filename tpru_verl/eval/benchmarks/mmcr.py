"""MMCR: reasoning over figures, tables and text of scientific papers; 276 rows.

Tian et al. 2025, "MMCR: Benchmarking Cross-Source Reasoning in Scientific Papers". The table holds each
question once for each place of its options; `--circular` asks them so.
"""

from __future__ import annotations

from tpru_verl.eval.benchmarks.base import SELECT, Benchmark, table

BENCHMARK = Benchmark(
    name="mmcr",
    title="MMCR",
    hub="bbbeer/MMCR",
    rows=276,
    layouts=(table(),),
    instruction=SELECT,
    note="rotations of rows that are there",
    tsv="MMCR",
    md5="9052635f2c3835bdb87755ef73564f5e",
)
