"""The GPU kernels against the reference in float64, over a covering set of weights and rows.

The checks together take every pair of bits and group size, both formats and both dtypes of x with
each of them, every way in which parameters are stored, and rows on both sides of every change of
kernel. Neither side of a weight is a multiple of any tile. Two runs and a replay of a CUDA graph
must agree bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

import torch

from gpu_report.processes import each
from qbench.contracts import WeightFormat
from qbench.errors import QbenchError
from qbench.kernels.contract import Kernel
from qbench.kernels.description import description_of, moved, request_of
from qbench.kernels.reference import linear
from qbench.kernels.registry import all_kernels, broken_kernels
from qbench.kernels.samples import random_binary, random_lattice, random_uniform

SHARE = 0.8  # of the section's time, after which checks that are left are not begun
WORKERS = 14
OUT = 333
INPUTS = {32: 1120, 64: 1088, 128: 1152, 256: 1280, 0: 1000}  # group size: in; 0: per channel
BITS = (3, 2, 4, 8, 1, 5, 6, 7)  # the widths that matter most come first
DTYPES = ("bfloat16", "float16")
ROWS = ((1, 33), (2, 16), (4, 64), (5, 200), (8, 1))  # taken in turns, as each is compiled
ALL_ROWS = (1, 2, 4, 5, 8, 16, 33, 64, 200)
LATTICE_LIMIT = 2e-2  # as bfloat16 and float16 round the transformed inputs
Parameters = Literal["", "no shift", "float32", "integers", "real zero", "middle zero"]


class Check(NamedTuple):
    """A weight, the dtype and the rows of x, and the kernels that multiply them."""

    coding: str
    bits: int
    group_size: int  # 0: per channel
    dtype: str
    rows: tuple[int, ...]
    kernels: tuple[str, ...]
    parameters: Parameters = ""
    shape: tuple[int, int] = (0, 0)  # (out, in); none: OUT, and what INPUTS says


def checks(names: tuple[str, ...]) -> list[Check]:
    """All checks of these kernels, in the order of their weight."""
    first = [Check("binary", 3, 128, "bfloat16", ALL_ROWS, names, shape=(4112, 4096))]
    for coding, dtype in product(("binary", "uniform"), DTYPES):
        first.append(Check(coding, 3, 128, dtype, ALL_ROWS, names))
    for parameters in get_args(Parameters)[1:]:
        coding = "uniform" if parameters.endswith("zero") else "binary"
        first.append(Check(coding, 3, 64, "bfloat16", (1, 8, 64), names, parameters))
    ours = tuple(name for name in names if name != "triton")
    second = []
    for turn, (bits, group) in enumerate(product(BITS, INPUTS)):
        rows = ROWS[(turn + turn // len(INPUTS)) % len(ROWS)]  # all of them for every width
        coding = ("binary", "uniform")[turn % 2]
        dtype = DTYPES[turn // 2 % 2]
        second.append(Check(coding, bits, group, dtype, rows, ours))
    return first + second


def weight_of(check: Check) -> WeightFormat:
    """The check's weight, on the CPU."""
    shape = check.shape if check.shape[0] else (OUT, INPUTS[check.group_size])
    group = check.group_size or shape[1]
    if check.coding == "binary":
        dtype = torch.float32 if check.parameters == "float32" else torch.float16
        shift = check.parameters != "no shift"
        scale_bits = 7 if check.parameters == "integers" else 16
        return random_binary(shape, check.bits, group, 0, shift, dtype, scale_bits)
    if check.parameters == "real zero":
        return random_uniform(shape, check.bits, group, zero_points="real")
    if check.parameters == "middle zero":
        return random_uniform(shape, check.bits, group, zero_points="middle")
    return random_uniform(shape, check.bits, group)


def products(check: Check) -> list[dict[str, Any]]:
    """An entry for every kernel and number of rows, with its error or the reason why it has none.

    error: relative, in norm. rounding: what rounding the exact result to the dtype of x costs.
    """
    torch.manual_seed(0)
    weight = moved(weight_of(check), "cuda")
    out, columns = weight.shape
    parts = list(weight.to_tensors().values())
    description = description_of(weight)
    entries = []
    for name, rows in product(check.kernels, check.rows):
        kernel = all_kernels()[name]
        bias = torch.randn(out, device="cuda") if rows % 2 else None
        x = torch.randn(rows, columns, device="cuda").to(getattr(torch, check.dtype))
        entry = check._asdict() | {"kernels": None, "rows": rows, "kernel": name}
        reason = kernel.refusal(request_of(x, parts, description))
        if reason is not None:
            entries.append(entry | {"refused": reason})
            continue

        def run(kernel: Kernel = kernel, x: Any = x, bias: Any = bias) -> torch.Tensor:
            return kernel.run(x, parts, bias, description)

        exact = linear(x.double(), weight, bias)
        entries.append(entry | judged(run, exact, x.dtype, kernel.bound(x.dtype)))
    return entries


def judged(
    run: Callable[[], torch.Tensor], exact: torch.Tensor, dtype: torch.dtype, limit: float
) -> dict[str, Any]:
    """The error of this product; whether it is right: in its limit, and three times the same."""
    first = run()
    repeats = torch.equal(first, run())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = run()
    graph.replay()
    torch.cuda.synchronize()
    error = ((first.double() - exact).norm() / exact.norm()).item()
    rounding = ((exact.to(dtype).double() - exact).norm() / exact.norm()).item()
    same = repeats and torch.equal(first, replayed)
    return {
        "error": error,
        "rounding": rounding,
        "limit": limit,
        "repeats": same,
        "right": error <= limit and same,
    }


def lattice(turn: int) -> list[dict[str, Any]]:
    """Lattice weights, with float32 in between, by the kernel that serves them."""
    features: Literal["codes", "signs"] = ("codes", "signs")[turn % 2]
    weight = random_lattice((1024, 1024), 2 + turn // 2 % 2, features=features)
    exact = weight.dequantize().double().cuda()
    there = moved(weight, "cuda")
    parts = list(there.to_tensors().values())
    entries = []
    for dtype, rows in product((torch.bfloat16, torch.float16), (1, 16, 65)):
        x = torch.randn(rows, 1024, device="cuda").to(dtype)
        kernel = all_kernels()["triton"]

        def run(x: torch.Tensor = x, kernel: Kernel = kernel) -> torch.Tensor:
            return kernel.run(x, parts, None, description_of(there))

        facts = judged(run, x.double() @ exact.T, dtype, LATTICE_LIMIT)
        about = {"coding": f"lattice {features}", "bits": weight.bits, "dtype": str(dtype)[6:]}
        entries.append(about | {"rows": rows, "kernel": "triton"} | facts)
    return entries


def gpu_kernels() -> tuple[str, ...]:
    """The kernels that were written for a GPU, by name. QbenchError where there is none."""
    names = tuple(name for name, kernel in all_kernels().items() if kernel.devices == ("cuda",))
    if not names:
        raise QbenchError(f"no kernel of a GPU was found: {broken_kernels()}")
    return names


def summary(entries: list[dict[str, Any]], kernel: str) -> str:
    """One line for a kernel."""
    own = [entry for entry in entries if entry["kernel"] == kernel and "right" in entry]
    right = [entry for entry in own if entry["right"]]
    refused = sum(entry["kernel"] == kernel and "refused" in entry for entry in entries)
    worst = max((entry["error"] for entry in right), default=0.0)
    ratio = max((entry["error"] / entry["rounding"] for entry in right), default=0.0)
    return (
        f"{kernel}: {len(right)} of {len(own)} products are right, {refused} refused; largest "
        f"error {worst:.2g}, at most {ratio:.2f} times the rounding of the result"
    )


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """All checks, or the first few of them; whether everything that was reached is right."""
    end = time.monotonic() + SHARE * seconds
    names = gpu_kernels()
    todo = checks(names)[: 8 if quick else None]
    entries: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for function, items in ((lattice, range(4)), (products, todo)):
        for item, found, reason in each(function, items, WORKERS, end - time.monotonic()):
            if reason is None:
                entries += found
            else:
                about = item._asdict() if isinstance(item, Check) else {"coding": "lattice"}
                failures.append(about | {"reason": reason})
                print(f"{about}: {reason}", flush=True)
            write({"products": entries, "failures": failures, "broken": broken_kernels()})
    for entry in entries:
        if not entry.get("right", True):
            print(f"wrong: {entry}", flush=True)
    for kernel in names:
        print(summary(entries, kernel), flush=True)
    late = [failure for failure in failures if "in time" in failure["reason"]]
    return len(late) == len(failures) and all(entry.get("right", True) for entry in entries)
