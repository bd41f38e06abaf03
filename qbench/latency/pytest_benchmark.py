"""Timed rows as JSON in the layout of pytest-benchmark, which `pytest-benchmark compare` reads."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from qbench.environment import environment
from qbench.latency.timing import Row


def as_benchmarks(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows of any shapes. Beside pytest-benchmark's fields, `extra_info` has what a rate is computed from."""
    stated = environment()
    return {
        "machine_info": stated | {"node": stated["hardware"]["cpu"]},
        "commit_info": {"id": stated["git_commit"]},
        "benchmarks": [_benchmark(row) for row in rows],
        "datetime": datetime.now(timezone.utc).isoformat(),
        "version": "qbench",
    }


def _benchmark(row: Row) -> dict[str, Any]:
    group = f"{row.shape}, {row.device}"
    extra = {
        **{
            "shape": [*row.shape],
            "device": row.device,
            "bits": row.bits,
            "weight_bytes": row.nbytes,
        },
        **{"operations": row.operations, "relative_error": row.error, "bytes_per_second": row.rate},
    }
    named = {
        "group": group,
        "name": row.name,
        "fullname": f"{group}: {row.name}",
        "params": None,
        "param": None,
    }
    return named | {"extra_info": extra, "options": {}, "stats": _stats(row.times)}


def _stats(times: Sequence[float]) -> dict[str, Any]:
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    mean, deviation, iqr = statistics.fmean(times), statistics.stdev(times), q3 - q1
    low = min(t for t in times if t >= q1 - 1.5 * iqr)
    high = max(t for t in times if t <= q3 + 1.5 * iqr)
    far = sum(abs(t - mean) > deviation for t in times), sum(not low <= t <= high for t in times)
    return {
        **{
            "min": min(times),
            "max": max(times),
            "mean": mean,
            "stddev": deviation,
            "rounds": len(times),
        },
        **{
            "median": median,
            "iqr": iqr,
            "q1": q1,
            "q3": q3,
            "iqr_outliers": far[1],
            "stddev_outliers": far[0],
        },
        **{"outliers": f"{far[0]};{far[1]}", "ld15iqr": low, "hd15iqr": high, "ops": 1 / mean},
        **{"total": sum(times), "data": [*times], "iterations": 1},
    }
