"""Other programs that compile or tune themselves, beside our kernels, with minutes of their own.

Each runs once in a process of its own first: what it compiles for a shape, it keeps on the disk.
gemlite tunes itself for every shape, for a minute each, and is timed on the first matrix alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from typing import Any

from gpu_report.latency import PLAIN, SHAPES, failures, timed
from qbench.latency.gpu_peers import programs
from qbench.latency.timing import Shape

ROWS = (1, 16)
WORKERS = 4  # beside 13 others none had ended after 49 s on an H200 with 16 cores
COMPILING = 0.7  # of the section's time, at most
ONE_MATRIX = ("gemlite int2", "gemlite int4", "gemlite int8")
ELSEWHERE = "it is timed on the first matrix alone"


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """Time what was compiled in time; whether it could be timed."""
    end = time.monotonic() + seconds
    todo = [Shape(*matrix, rows) for rows, matrix in product(ROWS[: 1 if quick else 2], SHAPES)]
    names = [name for name in programs() if name not in PLAIN]
    tasks = []
    for shape, name in product(todo, names):
        if name not in ONE_MATRIX or shape.weight == todo[0].weight:
            tasks.append((shape, name))
    failed = failures(todo, tasks, WORKERS, COMPILING * seconds)
    print(f"{end - time.monotonic():.0f} s are left for timing", flush=True)
    for shape in todo:
        if shape.weight != todo[0].weight:
            failed[shape] |= dict.fromkeys(ONE_MATRIX, ELSEWHERE)
    return timed(todo, failed, {}, end, write)
