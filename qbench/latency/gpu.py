"""How products are timed on a GPU: by a CUDA graph over all copies of a candidate's weight.

The copies are four times the L2 cache together, and the time is divided by their number, so that
neither a warm cache nor what Python needs to launch a kernel is part of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qbench.errors import ConfigError
from qbench.kernels.description import moved
from qbench.kernels.gpu import products as gpu
from qbench.kernels.gpu import triton_tune
from qbench.kernels.gpu import tune as kernels
from qbench.kernels.samples import MAKERS
from qbench.latency.candidates import SEED, SHORT
from qbench.latency.timing import Candidate

if TYPE_CHECKING:
    from qbench.latency.request import Request

READ_BYTES = (1 << 30, 2 << 30, 4 << 30)  # of the buffers whose reading is timed
READ_TURNS = 5
TUNED_DTYPES = (torch.float16, torch.bfloat16)


def require_gpu() -> None:
    """ConfigError where there is no GPU, or no triton."""
    reason = gpu.unavailable()
    if reason is not None:
        raise ConfigError(f"--device cuda: {reason}; `--device cpu` times on the processor")


def graph_clock(candidate: Candidate) -> Callable[[int], float]:
    """Seconds of one product, by events around one replay; the copies are all in the graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # compiles, allocates what libraries keep, and derives each copy's layout
        for copy in range(candidate.copies):
            candidate.run(copy)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream), candidate.scope():
        for copy in range(candidate.copies):
            candidate.run(copy)
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)

    def elapsed(copy: int) -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        milliseconds = start.elapsed_time(end)
        return milliseconds / 1000 / candidate.copies

    return elapsed


def probes() -> list[Candidate]:
    """What the GPU can do, to be timed among the candidates.

    Reading memory, and products of square matrices of order 8192 in bfloat16 and 4096 in float32.
    Reading is a sum, not a copy: a copy in a graph shows 62 % of what kernels reach that only read.
    """
    return [
        reader(READ_BYTES),
        _multiplier(torch.bfloat16, 8192, 1e-2),
        _multiplier(torch.float32, 4096, 1e-4),
    ]


def tune(request: Request) -> list[Path]:
    """Tune the GPU kernels for the request's shapes, formats and bits; their files of this GPU.

    ConfigError where there is no GPU.
    """
    triton_tune.require_gpu()
    paths: dict[Path, None] = {}  # each once, in their order
    widths = product(request.shapes, request.formats, request.bits)
    for (shape, kind, bits), dtype in product(widths, TUNED_DTYPES):
        weight = moved(MAKERS[kind](shape.weight, bits, request.group_of(shape), SEED), "cuda")
        paths |= dict.fromkeys(kernels.tune(weight, [shape.rows], dtype))
    return list(paths)


def reader(sizes: Sequence[int]) -> Candidate:
    """Sums a buffer of float32: its rate is the read bandwidth.

    sizes: bytes of buffers that are tried; the one that is read fastest is the candidate. Those for
    which the GPU has no free memory are left out, but for the first.
    """
    free, _ = torch.cuda.mem_get_info()
    best = _reader(sizes[0])
    most = _rate(best)
    for size in sizes[1:]:
        if size > free // 2:
            break
        candidate = _reader(size)
        rate = _rate(candidate)
        if rate > most:
            best, most = candidate, rate
    return best


def _reader(nbytes: int) -> Candidate:
    ones = torch.ones(nbytes // 4, device="cuda")
    total = torch.full((), float(ones.numel()), device="cuda", dtype=torch.float64)

    def run(copy: int) -> Tensor:
        return ones.sum()

    return Candidate("read", 8, nbytes, 1, run, total, 1e-5)


def _rate(candidate: Candidate) -> float:
    """Bytes per second, the median of some turns."""
    elapsed = graph_clock(candidate)
    return candidate.nbytes / statistics.median(elapsed(0) for _ in range(READ_TURNS))


def _multiplier(dtype: torch.dtype, order: int, limit: float) -> Candidate:
    x = torch.randn(order, order, device="cuda", dtype=dtype)
    expected = x.double() @ x.double()

    def run(copy: int) -> Tensor:
        return x @ x

    name = f"multiply {SHORT[dtype]}"
    return Candidate(name, 0, x.nbytes, 1, run, expected, limit, 2 * order**3)
