"""TPRU-Test: reordering, next frame and previous frame over robots, LEGO, screens and rooms; 461 rows.

Rows are read and asked as in training, so that the only thing that differs is the model.
"""

from __future__ import annotations

from tpru_verl.eval.benchmarks.base import Benchmark
from tpru_verl.eval.benchmarks.own import read

BENCHMARK = Benchmark(
    name="tpru-test",
    title="TPRU-Test",
    hub="Stephengzk/TPRU-test",
    rows=461,
    layouts=(),
    read=read,
    template="paper",
    tsv="TPRU_Test",
)
