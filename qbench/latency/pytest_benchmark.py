"""Timed rows as JSON in the layout of pytest-benchmark, which `pytest-benchmark compare` reads."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from qbench.environment import environment
from qbench.kernels.cpu.library import ISA_VARIABLE, ISAS, chosen_isa, unavailable
from qbench.latency.timing import Row

# Set, they keep the kernels, torch and oneDNN to older instruction sets than the processor has.
LIMITS = (ISA_VARIABLE, "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


def as_benchmarks(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows of any shapes, as the content of one file.

    Beside pytest-benchmark's fields, `extra_info` has what a rate is computed from.
    """
    facts = environment()
    return {
        "machine_info": facts | {"node": facts["hardware"]["cpu"], "instructions": _instructions()},
        "commit_info": {"id": facts["git_commit"]},
        "benchmarks": [_benchmark(row) for row in rows],
        "datetime": datetime.now(UTC).isoformat(),
        "version": "qbench",
    }


def _instructions() -> dict[str, str | None]:
    """The instruction set of the CPU kernels, and the limits that were set, by their variables."""
    kernels = None if unavailable() is not None else ISAS[chosen_isa()]
    limits = {name: os.environ[name] for name in LIMITS if name in os.environ}
    return {"kernels": kernels} | limits


def _benchmark(row: Row) -> dict[str, Any]:
    group = f"{row.shape}, {row.device}"
    extra = {
        "shape": [*row.shape],
        "device": row.device,
        "bits": row.bits,
        "weight_bytes": row.nbytes,
        "operations": row.operations,
        "relative_error": row.error,
        "bytes_per_second": row.rate,
    }
    return {
        "group": group,
        "name": row.name,
        "fullname": f"{group}: {row.name}",
        "params": None,
        "param": None,
        "extra_info": extra,
        "options": {},
        "stats": _stats(row.times),
    }


def _stats(times: Sequence[float]) -> dict[str, Any]:
    """pytest-benchmark's statistics of times in seconds.

    Outliers are counted in both of its ways: further from the mean than the standard deviation, and
    outside the whiskers of a box plot, 1.5 interquartile ranges beyond the quartiles.
    """
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    mean = statistics.fmean(times)
    deviation = statistics.stdev(times)
    iqr = q3 - q1
    low = min(time for time in times if time >= q1 - 1.5 * iqr)
    high = max(time for time in times if time <= q3 + 1.5 * iqr)
    beyond_deviation = sum(abs(time - mean) > deviation for time in times)
    beyond_whiskers = sum(not low <= time <= high for time in times)
    return {
        "min": min(times),
        "max": max(times),
        "mean": mean,
        "stddev": deviation,
        "rounds": len(times),
        "median": median,
        "iqr": iqr,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": beyond_whiskers,
        "stddev_outliers": beyond_deviation,
        "outliers": f"{beyond_deviation};{beyond_whiskers}",
        "ld15iqr": low,
        "hd15iqr": high,
        "ops": 1 / mean,
        "total": sum(times),
        "data": [*times],
        "iterations": 1,
    }
