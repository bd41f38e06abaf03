"""The plain product: the weight is dequantized, rounded to the dtype of x, and multiplied densely.

y = x round(W)^T + bias, which is what a dense layer computes that holds the weight. It serves every
request, so that there always is a product. This file is the model for a new kernel.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from qbench.kernels.contract import Description, Kernel
from qbench.kernels.description import weight_from


def run(x: Tensor, parts: list[Tensor], bias: Tensor | None, description: Description) -> Tensor:
    """x (..., in), bias (out,) or None -> (..., out) in the dtype of x."""
    weight = weight_from(parts, description).dequantize()  # (out, in) float32
    if bias is not None:
        bias = bias.to(x.dtype)
    return linear(x, weight.to(x.dtype), bias)


KERNEL = Kernel(
    "dequantized",
    run,
    automatic=True,
    priority=0,  # below every other, which are here because they are faster
    error=1e-5,  # measured: 6e-7 at most, for 4096 inputs in float32
    describe=lambda: "the weight dequantized, and a dense product",
    timed=False,  # it dequantizes at every call: minutes at the sizes of models
)
