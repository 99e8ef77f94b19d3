"""Times and memory of a model on this machine: dense and planned, and dense at several numbers of rows."""

from planner.runtime.bench.clock import tower_clock
from planner.runtime.bench.dense_planned import BenchResult, Measurement, bench, kv_cache_bytes
from planner.runtime.bench.memory import peak_bytes
from planner.runtime.bench.rows import FITTED_ROWS, RowTimes, product_elements, row_times

__all__ = [
    "FITTED_ROWS",
    "BenchResult",
    "Measurement",
    "RowTimes",
    "bench",
    "kv_cache_bytes",
    "peak_bytes",
    "product_elements",
    "row_times",
    "tower_clock",
]
