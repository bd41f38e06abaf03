"""Products with rotated binary weights: x is rotated, and then a kernel for binary weights serves.

W x = B (T (s * x)), as `qbench.formats.rotated_binary` has it. The transform takes n log n steps,
where the product takes n for each output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.formats import RotatedBinary
from qbench.formats.rotated_binary import rotated
from qbench.kernels import dequantized
from qbench.kernels.contract import Description, Kernel, Request
from qbench.kernels.description import request_of
from qbench.kernels.layouts import Layouts
from qbench.kernels.registry import choose


def run(x: Tensor, parts: list[Tensor], bias: Tensor | None, description: Description) -> Tensor:
    """x (..., in), bias (out,) or None -> (..., out) in the dtype of x."""
    s = _signs.of(parts, description)
    wide = torch.promote_types(x.dtype, torch.float32)
    turned = rotated(x.to(wide), s.to(wide)).to(x.dtype)
    *coding, _ = parts  # the signs are the last
    inner = _coding(description)
    kernel = choose(request_of(turned, coding, inner))
    return kernel.run(turned, coding, bias, inner)


def _coding(description: Description) -> Description:
    """What the rotated weight is, a binary one."""
    spec = dict(description["spec"])
    del spec["block"]
    return {
        "format": "binary",
        "parts": description["parts"][:-1],
        "spec": spec,
        "shape": description["shape"],
    }


def _refuses(request: Request) -> str | None:
    if choose(request._replace(format="binary")) is dequantized.KERNEL:
        return "no kernel but the plain product serves its binary coding"
    return None


def _signs_of(weight: WeightFormat) -> Tensor:
    if not isinstance(weight, RotatedBinary):
        raise ConfigError(f"a weight of the format {weight.format!r} is not rotated")
    return weight.s()


_signs: Layouts[Tensor] = Layouts(_signs_of)

KERNEL = Kernel(
    "rotated",
    run,
    formats=("rotated-binary",),
    automatic=True,
    error=2e-5,  # that of the kernels for binary weights, 1e-5, and of the transform
    roundings=2.0,  # of the rotated x, and of the result
    refuses=_refuses,
    describe=lambda: "x is rotated, and then multiplied by the kernel for binary weights",
    timed=False,  # `qbench latency` times formats that are not rotated
)
