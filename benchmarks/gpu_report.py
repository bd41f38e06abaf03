"""What the GPU kernels compute and cost on this machine: `make gpu-report`, or `python benchmarks/gpu_report.py`.

ceilings     bandwidth of a large copy (bytes read and written), and the rate of a large bfloat16 matrix product
correctness  each kernel against the reference in float64, for all bits, groups and dtypes
latency      one product, by batch, in turns with dense bfloat16 (cuBLAS) and those other kernels that are installed

A time is that of a CUDA graph that goes once through copies of the weight, more than the L2 cache holds, divided by
their number: median and spread over repetitions in which all take turns. Everything goes to one JSON file with the
hardware's name, after each section. Exits 1 where a product is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qbench.environment import environment
from qbench.formats import Binary, Uniform
from qbench.kernels import gpu
from qbench.kernels.reference import linear
from qbench.kernels.triton_configs import Config
from qbench.kernels.triton_layout import Planes, derive

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = ((4096, 4096), (14336, 4096), (8192, 28672))  # (out, in)
BATCHES = (1, 8, 16, 64, 256)
BITS = (2, 3, 4)
GROUP = 128
REPETITIONS = 25
TOLERANCE = {"skinny": 2e-6, "large": {"float16": 1e-3, "bfloat16": 8e-3}, "dense": {"float16": 2e-3, "bfloat16": 1e-2}}
LAUNCHES = (  # kernel and rows of x
    (Config("skinny", block_m=8, block_k=128, split=4), 5),
    (Config("skinny", split=1), 17),
    (Config("large", block_m=64, split=2), 65),
    (Config("dense"), 65),
)


class Check(NamedTuple):
    """One weight and dtype, for all kernels."""

    coding: str
    bits: int
    group_size: int
    dtype: str
    shape: tuple[int, int] = (328, 1152)  # neither is a multiple of the blocks


def weight_of(coding: str, bits: int, group: int, shape: tuple[int, int], device: str = "cuda") -> Binary | Uniform:
    """A random weight whose numbers are of a usual size."""
    out, columns = shape
    scale = (0.5 + torch.rand(out, columns // group, 1, device=device)) / columns**0.5
    if coding == "uniform":
        codes = torch.randint(0, 2**bits, shape, device=device, dtype=torch.uint8)
        zero = torch.randint(0, 2**bits, (out, columns // group), device=device, dtype=torch.uint8)
        return Uniform.from_codes(codes, scale[..., 0].half(), zero, bits)
    alpha = scale * 0.5 ** torch.arange(bits, device=device)
    signs = torch.randint(0, 2, (bits, *shape), device=device, dtype=torch.int8)
    return Binary.from_planes(signs, alpha.half(), (scale[..., 0] * torch.randn_like(scale[..., 0])).half())


def checks(quick: bool) -> list[Check]:
    """All bits, groups and dtypes, or a few."""
    bits, groups = ((3, 8), (64, 1152)) if quick else (range(1, 9), (32, 64, 128, 1152))
    return [Check(*each) for each in product(("binary", "uniform"), bits, groups, ("float16", "bfloat16"))]


def errors(check: Check) -> list[dict[str, Any]]:
    """The relative error of every kernel, in norm; two runs must agree bit for bit."""
    torch.manual_seed(0)
    weight = weight_of(check.coding, check.bits, check.group_size, check.shape)
    planes, dtype = derive(weight), getattr(torch, check.dtype)
    assert isinstance(planes, Planes)
    bias, found = torch.randn(check.shape[0], device="cuda"), []
    for config, m in LAUNCHES:
        x = torch.randn(m, check.shape[1], device="cuda").to(dtype)
        expected = linear(x.double(), weight, bias)
        first, again = (gpu.product(x, planes, bias, torch.float32, config) for _ in range(2))
        error = ((first - expected).norm() / expected.norm()).item()
        allowed = TOLERANCE[config.kind]
        limit = allowed[check.dtype] if isinstance(allowed, dict) else allowed
        right = error <= limit and torch.equal(first, again)
        found.append(check._asdict() | {"kernel": config.kind, "m": m, "error": error, "limit": limit, "right": right})
    return found


def correctness(quick: bool) -> list[dict[str, Any]]:
    """All checks, in several processes, since most of the time goes into compiling."""
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        found = [entry for entries in pool.map(errors, checks(quick)) for entry in entries]
    for entry in found:
        if not entry["right"]:
            print(f"wrong: {entry}", flush=True)
    worst = {kind: max(e["error"] for e in found if e["kernel"] == kind) for kind in ("skinny", "large", "dense")}
    print(f"{sum(e['right'] for e in found)} of {len(found)} products are right; largest relative errors {worst}")
    return found


def elapsed(run: Callable[[], object]) -> float:
    """Milliseconds on the GPU."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def ceilings() -> dict[str, float]:
    """GB/s of a copy of 4 GB, and TFLOP/s of a bfloat16 product of order 8192, medians of 10."""
    source = torch.empty(1 << 32, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    x, w = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        target.copy_(source), x @ w
    copy = statistics.median(elapsed(lambda: target.copy_(source)) for _ in range(10))
    multiply = statistics.median(elapsed(lambda: x @ w) for _ in range(10))
    found = {"copy_gb_s": 2 * source.nbytes / copy / 1e6, "matmul_tflop_s": 2 * 8192**3 / multiply / 1e9}
    print({key: round(value) for key, value in found.items()}, flush=True)
    return found


def ours(bits: int) -> Callable[[tuple[int, int]], tuple[Callable[[Tensor], Tensor], int]]:
    """Makes a copy of a binary weight: (its product, its bytes)."""

    def make(shape: tuple[int, int]) -> tuple[Callable[[Tensor], Tensor], int]:
        planes = derive(weight_of("binary", bits, GROUP, shape))
        assert isinstance(planes, Planes)
        return lambda x: gpu.product(x, planes), planes.nbytes

    return make


def dense_bfloat16(shape: tuple[int, int]) -> tuple[Callable[[Tensor], Tensor], int]:
    """torch's dense product."""
    weight = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    return lambda x: x @ weight.T, weight.nbytes


def tinygemm_int4(shape: tuple[int, int]) -> tuple[Callable[[Tensor], Tensor], int]:
    """torch's own 4-bit product."""
    codes = torch.randint(0, 256, (shape[0], shape[1] // 2), device="cuda", dtype=torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    scales = torch.randn(shape[1] // GROUP, shape[0], 2, device="cuda", dtype=torch.bfloat16)
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, scales), packed.nbytes + scales.nbytes


def gemlite_int4(shape: tuple[int, int]) -> tuple[Callable[[Tensor], Tensor], int]:
    """gemlite, 4 bits."""
    from gemlite.core import DType, GemLiteLinear

    layer = GemLiteLinear(4, GROUP, shape[1], shape[0], input_dtype=DType.BF16, output_dtype=DType.BF16)
    codes = torch.randint(0, 16, shape, device="cuda", dtype=torch.uint8)
    scales = torch.rand(shape[0] * shape[1] // GROUP, 1, device="cuda", dtype=torch.bfloat16)
    layer.pack(codes, scales, torch.full_like(scales, 8.0), None)
    return layer, codes.nbytes // 2 + 2 * scales.nbytes


def bitsandbytes_nf4(shape: tuple[int, int]) -> tuple[Callable[[Tensor], Tensor], int]:
    """bitsandbytes, NF4 in blocks of 64."""
    import bitsandbytes

    dense = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    codes, state = bitsandbytes.functional.quantize_4bit(dense, blocksize=64, quant_type="nf4")
    return lambda x: bitsandbytes.matmul_4bit(x, codes.t(), state), codes.nbytes + state.absmax.nbytes


CONTENDERS = {f"qbench-{bits}b": ours(bits) for bits in BITS} | {
    make.__name__: make for make in (dense_bfloat16, tinygemm_int4, gemlite_int4, bitsandbytes_nf4)
}


def captured(name: str, shape: tuple[int, int], m: int) -> tuple[torch.cuda.CUDAGraph, int, int]:
    """A graph of one product with each of several copies of the weight; their number, and the bytes of one."""
    properties = torch.cuda.get_device_properties(0)
    x = torch.randn(m, shape[1], device="cuda", dtype=torch.bfloat16)
    products, size = [], 0
    while not products or len(products) < min(64, max(2, 4 * properties.L2_cache_size // size)):
        multiply, size = CONTENDERS[name](shape)
        products.append(multiply)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for multiply in products[:3]:  # compiles, and allocates what libraries keep
            multiply(x)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for multiply in products:
            multiply(x)
    graph.replay()
    torch.cuda.synchronize()
    graph.kept = (x, products)  # what the graph reads must live as long as it
    return graph, len(products), size


def latency(quick: bool) -> Iterator[dict[str, Any]]:
    """One entry for each shape, batch and contender: microseconds, or why there are none."""
    for shape, m in product(SHAPES[:1] if quick else SHAPES, BATCHES):
        graphs, times = {}, {}
        for name in CONTENDERS:
            try:
                graphs[name] = captured(name, shape, m)
                times[name] = []
            except Exception as error:  # a contender that is missing or fails must not end the report
                torch.cuda.synchronize()
                yield {"shape": shape, "m": m, "name": name, "failed": f"{type(error).__name__}: {error}"[:300]}
        for _ in range(REPETITIONS):
            for name, (graph, copies, _) in graphs.items():
                times[name].append(1000 * elapsed(graph.replay) / copies)
        for name, (_, copies, size) in graphs.items():
            deciles = statistics.quantiles(times[name], n=10)
            entry = {"shape": shape, "m": m, "name": name, "copies": copies, "weight_bytes": size}
            us = {"median_us": statistics.median(times[name]), "p10_us": deciles[0], "p90_us": deciles[-1]}
            yield entry | us | {"gb_s": size / us["median_us"] / 1e3}
        graphs.clear()
        torch.cuda.empty_cache()


def main() -> int:
    """Run all sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few checks, one shape")
    parser.add_argument("--json", type=Path, help="the file to write; else one in benchmarks/results")
    options = parser.parse_args()
    if (reason := gpu.unavailable()) is not None:
        print(f"gpu-report needs an NVIDIA GPU and triton: {reason}")
        return 2
    name = torch.cuda.get_device_name()
    path = options.json or RESULTS / f"gpu_{name.replace(' ', '_')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"gpu": name, "environment": environment(), "ceilings": ceilings()}
    path.write_text(json.dumps(report, indent=1))
    report["correctness"] = correctness(options.quick)
    path.write_text(json.dumps(report, indent=1))
    report["latency"] = []
    for entry in latency(options.quick):
        print({key: round(v, 2) if isinstance(v, float) else v for key, v in entry.items()}, flush=True)
        report["latency"].append(entry)
        path.write_text(json.dumps(report, indent=1))
    print(f"written to {path}")
    return 0 if all(entry["right"] for entry in report["correctness"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
