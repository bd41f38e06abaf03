"""What the GPU kernels compute and cost on this machine: `make gpu-report`, or `python benchmarks/gpu_report.py`.

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
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qbench.environment import environment
from qbench.formats import Binary, Lattice, Uniform
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
BITS = (2, 3, 4)
GROUP = 128
REPETITIONS = 25
TOLERANCE = {
    "skinny": 2e-6,
    "large": {"float16": 1e-3, "bfloat16": 8e-3},
    "dense": {"float16": 2e-3, "bfloat16": 1e-2},
}
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
    scale = (0.5 + torch.rand(out, columns // group, 1, device=device)) / columns**0.5
    if coding == "uniform":
        codes = torch.randint(0, 2**bits, shape, device=device, dtype=torch.uint8)
        zero = torch.randint(0, 2**bits, (out, columns // group), device=device, dtype=torch.uint8)
        return Uniform.from_codes(codes, scale[..., 0].half(), zero, bits)
    alpha = scale * 0.5 ** torch.arange(bits, device=device)
    signs = torch.randint(0, 2, (bits, *shape), device=device, dtype=torch.int8)
    return Binary.from_planes(
        signs, alpha.half(), (scale[..., 0] * torch.randn_like(scale[..., 0])).half()
    )


def checks(quick: bool) -> list[Check]:
    """All bits, groups and dtypes, or a few."""
    bits, groups = ((3, 8), (64, 1152)) if quick else (range(1, 9), (32, 64, 128, 1152))
    return [
        Check(*each)
        for each in product(("binary", "uniform"), bits, groups, ("float16", "bfloat16"))
    ]


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
        found.append(
            check._asdict()
            | {"kernel": config.kind, "m": m, "error": error, "limit": limit, "right": right}
        )
    return found


def correctness(quick: bool) -> list[dict[str, Any]]:
    """All checks, in several processes, since most of the time goes into compiling."""
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        found = [entry for entries in pool.map(errors, checks(quick)) for entry in entries]
    for entry in found:
        if not entry["right"]:
            print(f"wrong: {entry}", flush=True)
    worst = {
        kind: max(e["error"] for e in found if e["kernel"] == kind)
        for kind in ("skinny", "large", "dense")
    }
    print(
        f"{sum(e['right'] for e in found)} of {len(found)} products are right; largest relative errors {worst}"
    )
    return found


def lattice_errors() -> list[dict[str, Any]]:
    """Relative errors of lattice weights, whose inputs are transformed first; limits as bfloat16 and float16 round."""
    found = []
    for features, bits, kind in product(("codes", "signs"), (2, 3), ("float16", "bfloat16")):
        g, dtype = torch.Generator().manual_seed(bits), getattr(torch, kind)
        map, su, sv = (
            torch.randn(4, 4 if features == "codes" else 4 * bits, generator=g),
            *torch.ones(2, 1024),
        )
        codes = torch.randint(0, 2**bits, (1024, 1024), generator=g)
        weight = Lattice.from_codes(
            codes, map / 32, torch.randn(4, generator=g) / 32, su, sv, bits, features
        )
        for m in (1, 16, 65):
            x = torch.randn(m, 1024, generator=g).to(dtype)
            expected = x.double() @ weight.dequantize().double().T
            error = (
                (gpu.linear(x.cuda(), on_gpu(weight)).cpu() - expected).norm() / expected.norm()
            ).item()
            facts = {
                "coding": f"lattice {features}",
                "bits": bits,
                "dtype": kind,
                "kernel": "lattice",
                "m": m,
            }
            found.append(facts | {"error": error, "limit": 2e-2, "right": error <= 2e-2})
    return found


def on_gpu(weight: Lattice) -> LatticePlanes:
    """Its derived layout there."""
    tensors = {name: part.cuda() for name, part in weight.to_tensors().items()}
    planes = derive(Lattice.from_tensors(tensors, weight.spec()))
    assert isinstance(planes, LatticePlanes)
    return planes


def latency(quick: bool) -> Iterator[list[dict[str, Any]]]:
    """For each shape, the timings in pytest-benchmark's layout."""
    asked = Request(
        [Shape(*pair, m) for pair in (SHAPES[:1] if quick else SHAPES) for m in BATCHES],
        BITS,
        ["binary"],
        GROUP,
    )
    for shape in asked.shapes:
        rows, missing = time_shape(shape, asked, REPETITIONS, "cuda")
        for row in rows:
            print(
                f"{shape}  {row.name}  {row.seconds * 1e6:.1f} us  {row.rate / 1e9:.0f} GB/s",
                flush=True,
            )
        print(
            *(f"not here  {name}: {reason}" for name, reason in missing.items()),
            sep="\n",
            flush=True,
        )
        yield as_benchmarks(rows)["benchmarks"]
        torch.cuda.empty_cache()


def main() -> int:
    """Run all sections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few checks, one shape")
    parser.add_argument(
        "--json", type=Path, help="the file to write; else one in benchmarks/results"
    )
    options = parser.parse_args()
    if (reason := gpu.unavailable()) is not None:
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
