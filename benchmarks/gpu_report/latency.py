"""What `qbench latency --device cuda` times: our kernels, dense products and other programs.

First every product runs once in a process of its own, many at a time: most of what a kernel costs
the first time is its compilation, which all programs keep on the disk, and one that fails there is
not timed. Then there are two passes over the shapes: one with the programs that compile and tune
themselves, which take seconds for each shape, for one row of x, and one without them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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
SELF_TUNED = ("gemlite int4",)  # on every shape; what it compiles serves all shapes
PLAIN = ("torch int4", "bitsandbytes nf4", "bitsandbytes int8")
COMPILED = ("humming int2", "humming int3", "humming int4")  # for every shape
COMPILED_ROWS = (1,)
COMPILED_SHARE = 0.3  # of the section's time, at most, for the pass with them
APART = "it is timed in a pass of its own"
LEFT_OUT = "it is left out, as tuning itself takes seconds for each shape"

Task = tuple[Shape, str]  # what runs once: `3 bits` of our kernels, or another program


def shapes(quick: bool) -> list[Shape]:
    """What is timed, in this order."""
    matrices, rows = (QUICK_SHAPES, QUICK_ROWS) if quick else (SHAPES, ROWS)
    return [Shape(*matrix, count) for count, matrix in product(rows, matrices)]


def first_runs(todo: list[Shape]) -> list[Task]:
    """Everything that runs once before it is timed."""
    tasks = [(shape, f"{bits} bits") for shape, bits in product(todo, BITS)]
    for shape in todo:
        few = shape.rows in COMPILED_ROWS
        if shape.weight == todo[0].weight:
            tasks += [(shape, name) for name in (*PLAIN, *(SELF_TUNED if few else ()))]
        if few:
            tasks += [(shape, name) for name in COMPILED]
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


def failures(todo: list[Shape], seconds: float) -> dict[Shape, dict[str, str]]:
    """Runs everything once, so long at most; what failed for each shape, with the reason."""
    failed: dict[Shape, dict[str, str]] = {shape: {} for shape in todo}
    for (shape, name), reasons, reason in each(first_run, first_runs(todo), WORKERS, seconds):
        if reason is None:
            failed[shape] |= reasons
        elif name in programs():
            failed[shape][name] = reason
        elif "in time" not in reason:  # of ours rather than of a kernel that others have run
            failed[shape]["cuda"] = reason
    for shape, other in product(todo, todo):  # what failed for the first matrix fails for all
        if other.weight == todo[0].weight and other.rows == shape.rows:
            known = failed[other]
            failed[shape] |= {name: known[name] for name in (*PLAIN, *SELF_TUNED) if name in known}
    return failed


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """Time all shapes, or as many as there is time for; whether they could be timed."""
    end = time.monotonic() + seconds
    todo = shapes(quick)
    failed = failures(todo, COMPILING * seconds)
    for shape, reasons in failed.items():
        for name, reason in reasons.items():
            print(f"{shape}, first run of {name}: {reason}", flush=True)
    print(f"{end - time.monotonic():.0f} s are left for timing", flush=True)
    left_out = {name: LEFT_OUT for name in programs() if name.startswith("gemlite")}
    apart = dict.fromkeys((*SELF_TUNED, *COMPILED), APART)
    results: dict[str, Any] = {"first_runs": {str(shape): why for shape, why in failed.items()}}
    few = [shape for shape in todo if shape.rows in COMPILED_ROWS]
    others = {name: reason for name, reason in left_out.items() if name not in SELF_TUNED}
    soon = min(end, time.monotonic() + COMPILED_SHARE * seconds)
    passes = {
        "with_compiled": (few, others, soon),
        "timings": (todo, left_out | apart, end),
    }
    whole = True
    for title, (which, without, until) in passes.items():

        def keep(stored: dict[str, Any], title: str = title) -> None:
            results[title] = stored
            write(results)

        whole = timed(which, failed, without, until, keep) and whole
    return whole


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
