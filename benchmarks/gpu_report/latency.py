"""What `qbench latency --device cuda` times: our kernels, dense products and other programs.

First every product runs once in a process of its own, many at a time: most of what a kernel costs
the first time is its compilation, which is kept on the disk, and one that fails there is not timed.
Programs that compile or tune themselves are those of the section `peers`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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

SHAPES = ((4096, 4096), (8192, 28672), (8192, 8192), (14336, 4096))  # (out, in)
ROWS = (1, 8, 16, 256, 64, 4, 2)  # what matters most comes first
QUICK_SHAPES = SHAPES[:3]
QUICK_ROWS = ROWS[:4]
BITS = (2, 3, 4)
GROUP = 128
REPETITIONS = 15
WORKERS = 14
COMPILING = 0.5  # of the section's time, at most
PLAIN = ("torch int4", "bitsandbytes nf4", "bitsandbytes int8")
APART = "it compiles itself for seconds, and is timed in a section of its own"

Task = tuple[Shape, str]  # what runs once: `3 bits` of our kernels, or another program


def shapes(quick: bool) -> list[Shape]:
    """What is timed, in this order."""
    matrices, rows = (QUICK_SHAPES, QUICK_ROWS) if quick else (SHAPES, ROWS)
    return [Shape(*matrix, count) for count, matrix in product(rows, matrices)]


def first_runs(todo: list[Shape]) -> list[Task]:
    """Everything that runs once before it is timed."""
    tasks = [(shape, f"{bits} bits") for shape, bits in product(todo, BITS)]
    for shape in todo:
        if shape.weight == todo[0].weight:
            tasks += [(shape, name) for name in PLAIN]
    return tasks


def first_run(task: Task) -> dict[str, str]:
    """The products of this task once; the reasons of our kernels that failed."""
    shape, name = task
    x = random_matrix(shape.rows, shape.columns, 1, "cuda").bfloat16()
    failed = {}
    if name in programs():
        dense = random_matrix(shape.out, shape.columns, 2, "cuda")
        programs()[name](dense)[0]().run(x)
    else:
        bits = int(name.split()[0])
        weight = moved(MAKERS["binary"](shape.weight, bits, GROUP, SEED), "cuda")
        exact = x.double() @ weight.dequantize().double().T
        for kernel in map(all_kernels().__getitem__, gpu_kernels()):
            if kernel.refusal(request_of(x, weight)) is None:
                y = prepare(kernel, weight).run(x).double()
                error = ((y - exact).norm() / exact.norm()).item()
                if not error <= kernel.bound(x.dtype):
                    failed[kernel.name] = f"{bits} bits: the relative error is {error:.2g}"
    torch.cuda.synchronize()
    return failed


def failures(
    todo: list[Shape], tasks: list[Task], workers: int, seconds: float
) -> dict[Shape, dict[str, str]]:
    """Runs these once, so long at most; what failed for each shape of `todo`, with the reason."""
    failed: dict[Shape, dict[str, str]] = {shape: {} for shape in todo}
    for (shape, name), reasons, reason in each(first_run, tasks, workers, seconds):
        if reason is None:
            failed[shape] |= reasons
        elif name in programs():
            failed[shape][name] = reason
        elif "in time" not in reason:  # of ours rather than of a kernel that others have run
            failed[shape]["cuda"] = reason
    for shape, reasons in failed.items():
        for name, reason in reasons.items():
            print(f"{shape}, first run of {name}: {reason}", flush=True)
    return failed


def for_all_matrices(
    failed: dict[Shape, dict[str, str]], names: Sequence[str]
) -> dict[Shape, dict[str, str]]:
    """The same, where what these programs failed in with the first matrix they fail in with all."""
    first = next(iter(failed)).weight
    told = {}
    for shape, reasons in failed.items():
        known = failed[shape._replace(out=first[0], columns=first[1])]
        told[shape] = {**reasons, **{name: known[name] for name in names if name in known}}
    return told


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """Time all shapes, or as many as there is time for; whether they could be timed."""
    end = time.monotonic() + seconds
    todo = shapes(quick)
    failed = failures(todo, first_runs(todo), WORKERS, COMPILING * seconds)
    failed = for_all_matrices(failed, PLAIN)
    apart = {name: APART for name in programs() if name not in PLAIN}
    return timed(todo, failed, apart, end, write)


def timed(
    which: list[Shape],
    failed: Mapping[Shape, Mapping[str, str]],
    without: Mapping[str, str],
    end: float,
    keep: Callable[[dict[str, Any]], None],
) -> bool:
    """Times these shapes until `end`; whether they could be. `keep` gets all rows so far.

    failed: what is not timed, since it could end this process; without: programs left out.
    """
    rows: list[Row] = []
    missing: dict[str, dict[str, str]] = {}
    slowest = 0.0
    for shape in which:
        begun = time.monotonic()
        if begun + slowest > end:
            print(f"no time is left for {shape} and what follows", flush=True)
            break
        names = [name for name in gpu_kernels() if name not in failed[shape]] or ["dequantized"]
        request = Request([shape], BITS, ["binary"], GROUP, names, {**without, **failed[shape]})
        try:
            own, missing[str(shape)] = time_shape(shape, request, REPETITIONS, "cuda")
        except QbenchError as error:
            missing[str(shape)] = {"all": str(error)}
            print(f"{shape}: {error}", flush=True)
            continue
        rows += own
        show(own, missing[str(shape)])
        keep(as_benchmarks(rows) | {"not_timed": missing})
        torch.cuda.empty_cache()
        slowest = max(slowest, time.monotonic() - begun)
        print(f"  {time.monotonic() - begun:.1f} s for this shape", flush=True)
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
