"""Plain PyTorch products with quantized weights: the definition that every kernel is held against.

uniform  y = sum_g s_g (q_g . x_g - z_g sum x_g)
binary   y = sum_g sum_i alpha_gi (c_gi . x_g) + shift_g sum x_g

Neither forms the dense weight, so they also check `dequantize`. Of a rotated binary weight x is
rotated, and then multiplied as by a binary one. Work is done in the dtype of `x`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.formats import Binary, Dense, RotatedBinary, Uniform
from qbench.formats.rotated_binary import rotated


def linear(x: Tensor, weight: WeightFormat, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in) in any format, bias (out,) -> (..., out) in the dtype of x.

    ConfigError where the shapes do not fit.
    """
    out, columns = weight.shape
    if x.shape[-1:] != (columns,) or (bias is not None and bias.shape != (out,)):
        size = None if bias is None else tuple(bias.shape)
        shapes = f"x {tuple(x.shape)}, weight {(out, columns)}, bias {size}"
        raise ConfigError(
            f"{shapes} do not fit; x must end in {columns}, and bias have {out} elements"
        )
    if isinstance(weight, Uniform):
        y = _uniform(x, weight)
    elif isinstance(weight, Binary):
        y = _binary(x, weight)
    elif isinstance(weight, RotatedBinary):
        y = _binary(rotated(x, weight.s().to(x.dtype)), weight.coding)
    elif isinstance(weight, Dense):
        y = x @ weight.weight.to(x.dtype).T
    else:
        y = x @ weight.dequantize().to(x.dtype).T
    if bias is None:
        return y
    return y + bias


def _uniform(x: Tensor, weight: Uniform) -> Tensor:
    # (out, groups, g), (out, groups), (out, groups)
    codes, scale, zero = (part.to(x.dtype) for part in weight.unpacked())
    grouped = x.unflatten(-1, (-1, weight.group_size))  # (..., groups, g)
    dots = torch.einsum("...gk,ogk->...og", grouped, codes)  # (..., out, groups)
    # s (q . x - z sum x), summed over the groups; sum x is (..., 1, groups)
    centred = dots - zero * grouped.sum(-1).unsqueeze(-2)
    return (centred * scale).sum(-1)


def _binary(x: Tensor, weight: Binary) -> Tensor:
    grouped = x.unflatten(-1, (-1, weight.group_size))  # (..., groups, g)
    # (bits, out, groups, g) in {-1, +1}
    signs = torch.stack([weight.signs(plane) for plane in range(weight.bits)]).to(x.dtype)
    dots = torch.einsum("...gk,bogk->...ogb", grouped, signs)  # (..., out, groups, bits)
    # alpha (out, groups, bits)
    y = (dots * weight.alpha.to(x.dtype)).sum((-1, -2))
    if weight.shift is None:
        return y
    return y + grouped.sum(-1) @ weight.shift.to(x.dtype).T
