"""The fastest launches of the CUDA kernels on this GPU, and the table that keeps them.

Everything is compiled first, in many processes. Times are those with x in bfloat16; the table has
them for float16, too, which reads and computes as much. The table is written where the kernels look
for it, so that later sections go by it, and is part of the report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from itertools import product
from typing import Any

import torch

from gpu_report.latency import BITS, GROUP, QUICK_SHAPES, SHAPES
from gpu_report.processes import each
from qbench.errors import ConfigError
from qbench.kernels import tuned
from qbench.kernels.description import moved
from qbench.kernels.gpu.cuda import choice, products, toolchain
from qbench.kernels.gpu.cuda.layout import CudaPlanes, derive
from qbench.kernels.gpu.cuda.tune import measure
from qbench.kernels.samples import MAKERS

ROWS = (1, 8, 16, 64, 4, 2, 256)  # what matters most comes first
QUICK_ROWS = ROWS
FORMAT = "binary"
WORKERS = 14
COMPILING = 0.6  # of the section's time, at most
DTYPES = (torch.bfloat16, torch.float16)

Task = tuple[int, int, tuple[int, int]]  # rows of x, bits, and (out, in)


def tasks(quick: bool) -> list[Task]:
    """What is tuned, in this order."""
    return list(product(QUICK_ROWS if quick else ROWS, BITS, QUICK_SHAPES if quick else SHAPES))


@lru_cache(maxsize=12)  # tasks that differ in their rows alone share it
def planes_of(bits: int, shape: tuple[int, int]) -> CudaPlanes:
    """A weight (out, in), as the kernels read it, on the GPU."""
    return derive(moved(MAKERS[FORMAT](shape, bits, GROUP, 0), "cuda"))


def compile_all(task: Task) -> int:
    """Every candidate of a task once; how many there are."""
    rows, bits, shape = task
    packed = products.Packed(planes_of(bits, shape))
    x = torch.zeros(rows, packed.planes.shape[1], device="cuda", dtype=torch.bfloat16)
    gpu = choice.gpu_of(packed.planes.words.get_device())
    candidates = choice.candidates(rows, packed.planes, gpu)
    for candidate in candidates:
        with suppress(ConfigError):  # what this GPU does not launch is no candidate
            products.product(x, packed, choice=candidate)
    torch.cuda.synchronize()
    return len(candidates)


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """Tune as much as there is time for; whether nothing failed."""
    end = time.monotonic() + 0.95 * seconds
    reasons = {}
    todo = tasks(quick)
    for task, _, reason in each(compile_all, todo, WORKERS, COMPILING * seconds):
        if reason is not None:
            reasons[task] = reason
    print(f"{len(todo) - len(reasons)} of {len(todo)} products are compiled", flush=True)
    configs: dict[str, dict[str, Any]] = {}
    timed = []
    facts = {"gpu": torch.cuda.get_device_name(), "nvrtc": toolchain.nvrtc_version()}
    for task in todo:
        if task in reasons or time.monotonic() > end:
            continue
        rows, bits, shape = task
        planes = planes_of(bits, shape)
        ranked = measure(planes, rows, torch.bfloat16)
        best, chosen = ranked[0]
        for dtype in DTYPES:
            configs[tuned.key_of(rows, planes, dtype)] = chosen.fields()
        times = [{"seconds": each_time} | found.fields() for each_time, found in ranked]
        timed.append({"rows": rows, "bits": bits, "shape": shape, "candidates": times})
        print(f"{shape}, {rows} rows, {bits} bits: {best * 1e6:.1f} us, {chosen}", flush=True)
        tuned.write(choice.TUNED.path(facts["gpu"]), facts, configs)
        write({"table": facts | {"configs": configs}, "timed": timed})
    failed = [reason for reason in reasons.values() if "in time" not in reason]
    for reason in failed:
        print(reason, flush=True)
    return not failed
