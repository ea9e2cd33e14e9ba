"""MMT-Bench, validation split: 162 subtasks of 32 kinds; 3,127 rows.  Ying et al. 2024, arXiv 2404.16006."""

from __future__ import annotations

from tpru_verl.eval.benchmarks.base import SELECT, Benchmark, table

BENCHMARK = Benchmark(
    name="mmtbench",
    title="MMTBench",
    hub="Kaining/MMT-Bench",
    revision="498043370ba1dd8f89bbea509b6b981c8d53f07c",
    hub_file="MMT-Bench_VAL.tsv",
    split="val",
    rows=3127,
    layouts=(table("category"),),
    instruction=SELECT,
    tsv="MMT-Bench_VAL",
    md5="8dd4b730f53dbf9c3aed90ca31c928e0",
)
