"""`tpru eval`: benchmarks, engines, statistics, comparison, pages, and tasks for other harnesses."""
