"""What `qbench latency --device cuda` times: our kernels, dense products and other programs.

First every product runs once in a process of its own, many at a time: most of what a kernel costs
the first time is its compilation, which all programs keep on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch

from gpu_report.correctness import gpu_kernels
from gpu_report.processes import each
from qbench.errors import QbenchError
from qbench.kernels.description import moved, prepare
from qbench.kernels.dispatch import request as request_of
from qbench.kernels.registry import all_kernels
from qbench.kernels.samples import MAKERS
from qbench.latency.candidates import SEED, random_matrix
from qbench.latency.gpu_peers import programs
from qbench.latency.pytest_benchmark import as_benchmarks
from qbench.latency.request import Request, time_shape
from qbench.latency.timing import Row, Shape

SHAPES = ((4096, 4096), (8192, 28672), (14336, 4096), (8192, 8192))  # (out, in)
ROWS = (1, 8, 64, 4, 16, 2, 256)  # what matters most comes first
QUICK_SHAPES = SHAPES[:2]
QUICK_ROWS = ROWS[:3]
BITS = (2, 3, 4)
GROUP = 128
REPETITIONS = 15
WORKERS = 10
COMPILING = 0.4  # of the section's time, at most


def shapes(quick: bool) -> list[Shape]:
    """What is timed, in this order."""
    matrices, rows = (QUICK_SHAPES, QUICK_ROWS) if quick else (SHAPES, ROWS)
    return [Shape(*matrix, count) for count, matrix in product(rows, matrices)]


def compile_all(shape: Shape) -> dict[str, str]:
    """Every product of this shape once; the reasons of those that failed."""
    failed = {}
    x = random_matrix(shape.rows, shape.columns, 1, "cuda").bfloat16()
    for bits in BITS:
        weight = moved(MAKERS["binary"](shape.weight, bits, GROUP, SEED), "cuda")
        exact = x.double() @ weight.dequantize().double().T
        for name in gpu_kernels():
            kernel = all_kernels()[name]
            if kernel.refusal(request_of(x, weight)) is None:
                try:
                    y = prepare(kernel, weight).run(x).double()
                    error = ((y - exact).norm() / exact.norm()).item()
                    if not error <= kernel.bound(x.dtype):
                        failed[name] = f"{bits} bits: the relative error is {error:.2g}"
                except Exception as error:
                    failed[name] = f"{type(error).__name__}: {error}"[:300]
    dense = random_matrix(shape.out, shape.columns, 2, "cuda")
    for name, pack in programs().items():
        try:
            pack(dense)[0]().run(x)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:300]
    return failed


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """Time all shapes, or as many as there is time for; whether they could be timed."""
    started = time.monotonic()
    todo = shapes(quick)
    compiled: dict[str, dict[str, str]] = {}
    for shape, failed, reason in each(compile_all, todo, WORKERS, COMPILING * seconds):
        if reason is None or "in time" in reason:
            compiled[str(shape)] = failed or {}
        else:  # its process died: of ours rather than of a kernel that others have run
            compiled[str(shape)] = {"cuda": reason}
    for shape, failed in compiled.items():
        if failed:
            print(f"{shape}, first run: {failed}", flush=True)
    rows: list[Row] = []
    missing: dict[str, dict[str, str]] = {}
    slowest = 0.0
    for shape in todo:
        begun = time.monotonic()
        if begun - started + slowest > seconds:
            print(f"no time is left for {shape} and what follows", flush=True)
            break
        # a kernel that failed once could end the context of this process
        names = [name for name in gpu_kernels() if name not in compiled[str(shape)]]
        request = Request([shape], BITS, ["binary"], GROUP, names or ["dequantized"])
        try:
            own, missing[str(shape)] = time_shape(shape, request, REPETITIONS, "cuda")
        except QbenchError as error:
            missing[str(shape)] = {"all": str(error)}
            print(f"{shape}: {error}", flush=True)
            continue
        rows += own
        show(own, missing[str(shape)])
        write(as_benchmarks(rows) | {"not_timed": missing, "first_runs": compiled})
        torch.cuda.empty_cache()
        slowest = max(slowest, time.monotonic() - begun)
    return all("all" not in reasons for reasons in missing.values())


def show(rows: list[Row], missing: dict[str, str]) -> None:
    """One line for each product: microseconds, share of the read bandwidth, times dense bf16."""
    memory = rows[0]
    dense = next(row.seconds for row in rows if row.name == "dense bf16")
    print(f"{memory.shape}; memory reads {memory.rate / 1e9:.0f} GB/s", flush=True)
    for row in rows[3:]:
        share = 100 * row.rate / memory.rate
        print(
            f"  {row.name:24} {row.seconds * 1e6:8.1f} us {share:4.0f} %  "
            f"{dense / row.seconds:5.2f} x dense bf16  error {row.error:.1g}",
            flush=True,
        )
    for name, reason in missing.items():
        print(f"  not timed  {name}: {reason[:120]}", flush=True)
