"""Times the CUDA kernels on the present GPU, and keeps the best of each product.

A time is that of a CUDA graph over copies of the weight that are more than the L2 cache holds.
`qbench.kernels.tuned` describes the file.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from qbench.errors import ConfigError
from qbench.kernels import tuned
from qbench.kernels.gpu.cuda import choice, launch, products, toolchain
from qbench.kernels.gpu.cuda.choice import Choice, Gpu
from qbench.kernels.gpu.cuda.layout import CudaPlanes
from qbench.kernels.gpu.cuda.products import Packed

AGREEMENT = 0.01  # how far a product may be from the default's, relative, in norm
REPLAYS = 9
MOST_COPIES = 32


def tune(
    weights: Iterable[CudaPlanes],
    batches: Iterable[int],
    dtype: torch.dtype,
    path: Path | None = None,
) -> Path:
    """Time all candidates for each weight and number of rows; write the GPU's file, or `path`.

    weights: on the present GPU. Entries of other products stay. A candidate counts only if its
    product agrees with the default's. Returns the file. ConfigError where there is no GPU.
    """
    reason = products.unavailable()
    if reason is not None:
        raise ConfigError(f"nothing can be tuned: {reason}; tune on the machine that will serve")
    name = torch.cuda.get_device_name()
    path = path or choice.TUNED.path(name)
    facts = {"gpu": name, "nvrtc": toolchain.nvrtc_version()}
    cases = list(product(list(weights), batches))
    compile_candidates(cases, dtype)
    for planes, rows in cases:
        best = measure(planes, rows, dtype)[0][1]
        tuned.write(path, facts, {tuned.key_of(rows, planes, dtype): best.fields()})
    choice.TUNED.forget()
    return path


def compile_candidates(cases: Iterable[tuple[CudaPlanes, int]], dtype: torch.dtype) -> None:
    """Compile all that these weights and rows of x may want, by all processors at once."""
    with launch.planning() as planned:
        for planes, rows in cases:
            x = torch.empty(rows, planes.shape[1], device=planes.words.device, dtype=dtype)
            for candidate in choice.candidates(rows, planes, _gpu(planes)):
                products.product(x, Packed(planes), choice=candidate)
    architecture = toolchain.architecture(torch.cuda.get_device_capability())
    toolchain.compile_all([(launch.source, launch.macros) for launch in planned], architecture)


def measure(planes: CudaPlanes, rows: int, dtype: torch.dtype) -> list[tuple[float, Choice]]:
    """(seconds, choice) of every candidate that agrees with the default, the fastest first.

    It must agree with itself, too, bit for bit. One that the GPU refuses, for the shared memory
    that it asks for, is left out.
    """
    gpu = _gpu(planes)
    x = torch.randn(rows, planes.shape[1], device=planes.words.device, dtype=dtype)
    copies = [Packed(planes), *(Packed(_copy(planes)) for _ in range(_copies(planes) - 1))]
    default = choice.default(rows, planes, gpu)
    expected = products.product(x, copies[0], choice=default).float()
    timed = []
    for candidate in {default: None, **dict.fromkeys(choice.candidates(rows, planes, gpu))}:
        try:
            y = products.product(x, copies[0], choice=candidate).float()
        except ConfigError:
            continue
        if (y - expected).norm() <= AGREEMENT * expected.norm():
            seconds = _seconds(x, copies, candidate)
            # One whose warps do not wait for each other as they should is at times another product.
            if torch.equal(products.product(x, copies[0], choice=candidate).float(), y):
                timed.append((seconds, candidate))
    return sorted(timed, key=lambda pair: pair[0])


def _gpu(planes: CudaPlanes) -> Gpu:
    return choice.gpu_of(planes.words.get_device())


def _copies(planes: CudaPlanes) -> int:
    """How many copies of a weight are more than the cache holds."""
    cache = torch.cuda.get_device_properties(planes.words.device).L2_cache_size
    return min(MOST_COPIES, 2 * cache // planes.nbytes + 2)


def _copy(planes: CudaPlanes) -> CudaPlanes:
    return replace(planes, words=planes.words.clone(), params=planes.params.clone())


def _seconds(x: Tensor, copies: list[Packed], candidate: Choice) -> float:
    """Of one product: the median replay of a graph over all copies."""

    def run() -> None:
        for packed in copies:
            products.product(x, packed, choice=candidate)

    return graph_seconds(run) / len(copies)


def graph_seconds(run: Callable[[], None]) -> float:
    """The median time of a CUDA graph of what `run` launches."""
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        run()  # compiles, and allocates what libraries keep
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)
