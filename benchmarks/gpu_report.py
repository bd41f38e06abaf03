"""What the GPU kernels compute and cost on this machine.

    make gpu-report, or python benchmarks/gpu_report.py

correctness  each kernel against the reference in float64, for all bits, groups and dtypes
latency      what `qbench latency --device cuda` times, by batch

Everything goes to one JSON file with the hardware's name, after each section. Exits 1 where a
product is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qbench.environment import environment
from qbench.formats import Binary, Lattice, Uniform
from qbench.formats.lattice import Features
from qbench.kernels.gpu import products as gpu
from qbench.kernels.gpu.triton_configs import Config
from qbench.kernels.gpu.triton_layout import LatticePlanes, Planes, derive
from qbench.kernels.reference import linear
from qbench.latency.pytest_benchmark import as_benchmarks
from qbench.latency.request import Request, time_shape
from qbench.latency.timing import Shape

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = ((4096, 4096), (14336, 4096), (8192, 28672))  # (out, in)
BATCHES = (1, 8, 16, 64, 256)
BITS = (2, 3, 4)  # that are timed
GROUP = 128
REPETITIONS = 25
TOLERANCE = {
    "skinny": 2e-6,
    "large": {"float16": 1e-3, "bfloat16": 8e-3},
    "dense": {"float16": 2e-3, "bfloat16": 1e-2},
}
LATTICE_TOLERANCE = 2e-2  # as bfloat16 and float16 round the transformed inputs
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


def weight_of(
    coding: str, bits: int, group: int, shape: tuple[int, int], device: str = "cuda"
) -> Binary | Uniform:
    """A random weight whose numbers are of a usual size."""
    out, columns = shape
    groups = columns // group
    scale = (0.5 + torch.rand(out, groups, 1, device=device)) / columns**0.5
    if coding == "uniform":
        codes = torch.randint(0, 2**bits, shape, device=device, dtype=torch.uint8)
        zero = torch.randint(0, 2**bits, (out, groups), device=device, dtype=torch.uint8)
        return Uniform.from_codes(codes, scale[..., 0].half(), zero, bits)
    alpha = scale * 0.5 ** torch.arange(bits, device=device)
    signs = torch.randint(0, 2, (bits, *shape), device=device, dtype=torch.int8)
    shift = scale[..., 0] * torch.randn_like(scale[..., 0])
    return Binary.from_planes(signs, alpha.half(), shift.half())


def checks(quick: bool) -> list[Check]:
    """All bits, groups and dtypes, or a few."""
    bits, groups = ((3, 8), (64, 1152)) if quick else (range(1, 9), (32, 64, 128, 1152))
    grid = product(("binary", "uniform"), bits, groups, ("float16", "bfloat16"))
    return [Check(*point) for point in grid]


def errors(check: Check) -> list[dict[str, Any]]:
    """The relative error of every kernel, in norm; two runs must agree bit for bit."""
    torch.manual_seed(0)
    weight = weight_of(check.coding, check.bits, check.group_size, check.shape)
    planes = derive(weight)
    assert isinstance(planes, Planes)
    dtype = getattr(torch, check.dtype)
    bias = torch.randn(check.shape[0], device="cuda")
    entries = []
    for config, m in LAUNCHES:
        x = torch.randn(m, check.shape[1], device="cuda").to(dtype)
        expected = linear(x.double(), weight, bias)
        first = gpu.product(x, planes, bias, torch.float32, config)
        again = gpu.product(x, planes, bias, torch.float32, config)
        error = ((first - expected).norm() / expected.norm()).item()
        limit = TOLERANCE[config.kind]
        if isinstance(limit, dict):
            limit = limit[check.dtype]
        right = error <= limit and torch.equal(first, again)
        facts = {"kernel": config.kind, "m": m, "error": error, "limit": limit, "right": right}
        entries.append(check._asdict() | facts)
    return entries


def correctness(quick: bool) -> list[dict[str, Any]]:
    """All checks, in several processes, since most of the time goes into compiling."""
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        entries = list(chain.from_iterable(pool.map(errors, checks(quick))))
    worst = dict.fromkeys(TOLERANCE, 0.0)
    for entry in entries:
        worst[entry["kernel"]] = max(worst[entry["kernel"]], entry["error"])
        if not entry["right"]:
            print(f"wrong: {entry}", flush=True)
    right = sum(entry["right"] for entry in entries)
    print(f"{right} of {len(entries)} products are right; largest relative errors {worst}")
    return entries


def lattice_errors() -> list[dict[str, Any]]:
    """The relative error of lattice weights in norm; their inputs are transformed first."""
    entries = []
    for features, bits, kind in product(("codes", "signs"), (2, 3), ("float16", "bfloat16")):
        generator = torch.Generator().manual_seed(bits)
        weight = lattice_of(features, bits, generator)
        for m in (1, 16, 65):
            x = torch.randn(m, 1024, generator=generator).to(getattr(torch, kind))
            expected = x.double() @ weight.dequantize().double().T
            y = gpu.linear(x.cuda(), on_gpu(weight)).cpu()
            error = ((y - expected).norm() / expected.norm()).item()
            entry = {
                "coding": f"lattice {features}",
                "bits": bits,
                "dtype": kind,
                "kernel": "lattice",
                "m": m,
                "error": error,
                "limit": LATTICE_TOLERANCE,
                "right": error <= LATTICE_TOLERANCE,
            }
            entries.append(entry)
    return entries


def lattice_of(features: Features, bits: int, generator: torch.Generator) -> Lattice:
    """A random lattice weight (1024, 1024) of vectors of 4 inputs."""
    k = 4 if features == "codes" else 4 * bits
    mapping = torch.randn(4, k, generator=generator) / 32
    codes = torch.randint(0, 2**bits, (1024, 1024), generator=generator)
    offset = torch.randn(4, generator=generator) / 32
    ones = torch.ones(1024)
    return Lattice.from_codes(codes, mapping, offset, ones, ones, bits, features)


def on_gpu(weight: Lattice) -> LatticePlanes:
    """The derived layout of this weight on the GPU."""
    tensors = {name: part.cuda() for name, part in weight.to_tensors().items()}
    planes = derive(Lattice.from_tensors(tensors, weight.spec()))
    assert isinstance(planes, LatticePlanes)
    return planes


def latency(quick: bool) -> Iterator[list[dict[str, Any]]]:
    """For each shape, the timings in pytest-benchmark's layout."""
    matrices = SHAPES[:1] if quick else SHAPES
    shapes = [Shape(*matrix, rows) for matrix, rows in product(matrices, BATCHES)]
    request = Request(shapes, BITS, ["binary"], GROUP)
    for shape in shapes:
        rows, missing = time_shape(shape, request, REPETITIONS, "cuda")
        for row in rows:
            speed = f"{row.seconds * 1e6:.1f} us  {row.rate / 1e9:.0f} GB/s"
            print(f"{shape}  {row.name}  {speed}", flush=True)
        for name, reason in missing.items():
            print(f"not here  {name}: {reason}", flush=True)
        yield as_benchmarks(rows)["benchmarks"]
        torch.cuda.empty_cache()


def main() -> int:
    """Run all sections; 0 where every product is right, 1 where one is not, 2 without a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few checks, one shape")
    parser.add_argument(
        "--json", type=Path, help="the file to write; else one in benchmarks/results"
    )
    options = parser.parse_args()
    reason = gpu.unavailable()
    if reason is not None:
        print(f"gpu-report needs an NVIDIA GPU and triton: {reason}")
        return 2
    name = torch.cuda.get_device_name()
    path = options.json or RESULTS / f"gpu_{name.replace(' ', '_')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"gpu": name, "environment": environment()}
    path.write_text(json.dumps(report, indent=1))
    report["correctness"] = correctness(options.quick) + lattice_errors()
    path.write_text(json.dumps(report, indent=1))
    report["benchmarks"] = []
    for timings in latency(options.quick):
        report["benchmarks"] += timings
        path.write_text(json.dumps(report, indent=1))
    print(f"written to {path}")
    return 0 if all(entry["right"] for entry in report["correctness"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
