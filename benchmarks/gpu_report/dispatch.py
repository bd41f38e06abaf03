"""What a product on the GPU promises beside its rounding, for a weight of every format.

Under autocast, with derivatives of both modes, compiled, on views, after a write to the weight, and
in a graph of CUDA it is the product in float64, as on a CPU (`tests/kernels/test_dispatch.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu_report.processes import each
from qbench.contracts import WeightFormat
from qbench.kernels.description import describe, moved
from qbench.kernels.dispatch import linear
from qbench.kernels.samples import random_binary, random_lattice, random_uniform

SHAPE = (512, 1024)
LIMITS = {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 2e-6}  # relative, in norm
WEIGHTS: dict[str, Callable[[], WeightFormat]] = {
    "binary, 3 bits": lambda: random_binary(SHAPE, 3, 64),
    "binary, 3 bits, scales of 7": lambda: random_binary(SHAPE, 3, 64, scale_bits=7),
    "uniform, 4 bits": lambda: random_uniform(SHAPE, 4, 128),
    "lattice, 2 bits": lambda: random_lattice(SHAPE, 2),
}
Products = tuple[Tensor, Tensor]  # what was computed, and what it should be


class Case:
    """A weight on the device, its numbers in float64, and inputs."""

    def __init__(self, weight: WeightFormat, device: str) -> None:
        self.weight = moved(weight, device)
        self.dense = self.weight.dequantize().double()
        self.x = torch.randn(3, SHAPE[1], device=device)

    def exact(self, x: Tensor) -> Tensor:
        """The product of x (..., in) in float64."""
        return x.double() @ self.dense.T


def plain(case: Case, dtype: torch.dtype, rows: int) -> Products:
    """Rows of x in this dtype, with a bias; the same under autocast."""
    x = torch.randn(rows, SHAPE[1], device=case.x.device).to(dtype)
    bias = torch.randn(SHAPE[0], device=x.device)
    y = linear(x, case.weight, bias)
    with torch.autocast(x.device.type, torch.bfloat16):
        again = linear(x, case.weight, bias)
    if not torch.equal(y, again):
        raise ValueError("autocast changes the product")
    return y, case.exact(x) + bias.double()


def backward(case: Case) -> Products:
    """The gradient in x of the sum of all products."""
    x = case.x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(linear(x, case.weight).sum(), x)
    return gradient, case.dense.sum(0).expand_as(x)


def forward_mode(case: Case) -> Products:
    """The derivative along a direction."""
    along = torch.randn_like(case.x)
    product = partial(linear, weight=case.weight)
    return torch.func.jvp(product, (case.x,), (along,))[1], case.exact(along)


def compiled(case: Case) -> Products:
    """Within a compiled function, whole."""
    parts = list(case.weight.to_tensors().values())
    text = describe(case.weight)

    def around(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.qbench.linear(x * 2, parts, None, text)
        return y + 1

    return torch.compile(around, fullgraph=True)(case.x), case.exact(case.x * 2) + 1


def views(case: Case) -> Products:
    """Rows that lie apart, whose signs are not in their memory."""
    apart = case.x.repeat_interleave(2, 0)[::2]
    return linear(torch._neg_view(apart), case.weight), -case.exact(case.x)


def written(case: Case) -> Products:
    """After a write to the codes, of which the kernel's layout was derived before."""
    linear(case.x.bfloat16(), case.weight)
    for part in case.weight.to_tensors().values():
        if part.dtype == torch.uint8:
            part.bitwise_not_()
    x = case.x.bfloat16()
    return linear(x, case.weight), x.double() @ case.weight.dequantize().double().T


def graph(case: Case) -> Products:
    """Replayed with other inputs in the place of those that were captured."""
    x = case.x.bfloat16()
    linear(x, case.weight)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        y = linear(x, case.weight)
    x.mul_(3)
    captured.replay()
    torch.cuda.synchronize()
    return y, case.exact(x)


def promises(device: str) -> dict[str, Callable[[Case], Products]]:
    """All that is tried, by name; compiled code and graphs of CUDA on a GPU alone."""
    tried: dict[str, Callable[[Case], Products]] = {}
    for dtype in LIMITS:
        for rows in (1, 5, 70):
            tried[f"{rows} x {str(dtype)[6:]}"] = partial(plain, dtype=dtype, rows=rows)
    for function in (backward, forward_mode, views, written):
        tried[function.__name__.replace("_", " ")] = function
    if device == "cuda":
        tried |= {"compiled": compiled, "graph": graph}
    return tried


def kept(name: str, device: str = "cuda") -> list[dict[str, Any]]:
    """An entry for every promise about the weight of this name, with its error."""
    torch.manual_seed(0)
    entries = []
    for title, function in promises(device).items():
        entry: dict[str, Any] = {"weight": name, "promise": title, "right": False}
        try:
            y, exact = function(Case(WEIGHTS[name](), device))
            error = ((y.double() - exact).norm() / exact.norm()).item()
            entry |= {"error": error, "right": error <= LIMITS[y.dtype]}
        except Exception as error:  # whatever it is, it is the result
            entry["reason"] = f"{type(error).__name__}: {error}"[:300]
        entries.append(entry)
    return entries


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """All promises of all weights, or of the first; whether they are kept."""
    entries: list[dict[str, Any]] = []
    names = list(WEIGHTS)[: 1 if quick else None]
    for name, found, reason in each(kept, names, len(names), 0.95 * seconds):
        entries += found or [{"weight": name, "right": False, "reason": reason}]
        write(entries)
    for entry in entries:
        if not entry["right"]:
            print(f"broken: {entry}", flush=True)
    print(f"{sum(entry['right'] for entry in entries)} of {len(entries)} promises are kept")
    return all(entry["right"] for entry in entries)
