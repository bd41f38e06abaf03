"""The mapping M of UniQuanF: a level of binary coding for every weight, and its gradient.

Codes are patterns of signs, and the levels of a group, sum_i a_i c_i, are in their order, as in
`levels.py`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from qbench.calibration.fused import over_rows
from qbench.methods.flexround import divided

Filter = Literal["distance", "range", "none"]


def nearest_neighbour(y: Tensor, levels: Tensor, codes: Tensor, by_pattern: bool) -> Tensor:
    """Index (rows, n), int64, of the nearest among the present level and its two neighbours.

    y (rows, n): transformed weights. levels (rows, L): in the order of the patterns. codes (rows,
    n) uint8: the present levels. by_pattern: neighbours in the order of the sign patterns, as in
    the published code, else in the order of the values.
    """
    last = levels.shape[1] - 1
    if by_pattern:
        order = torch.arange(last + 1, device=y.device).expand_as(levels)
    else:
        order = levels.argsort(1)
    # argsort of a permutation is its inverse: the place of each pattern in that order.
    rank = order.argsort(1).gather(1, codes.long())  # (rows, n), of the present level
    best = torch.full_like(y, torch.inf)
    chosen = codes.long()
    # At either end the missing neighbour is the present level once more, which changes nothing.
    for move in (-1, 0, 1):
        index = order.gather(1, (rank + move).clamp_(0, last))
        distance = (y - levels.gather(1, index)).abs_()
        closer = distance < best
        best = torch.where(closer, distance, best)
        chosen = torch.where(closer, index, chosen)
    return chosen


class MappedWeight(torch.autograd.Function):
    """w^ = s (l + z_B + h - z) for fixed codes, with the straight-through estimate dq/dx = 1.

    l = sum_i a_i c_i is the level of the weight, s = e^d1, v = w / e^(d1 + d2 + d3), and
    x = v + z - h. Gradient filtering (section 4.3): m = 0 where |x - z_B - l| > min_i |a_i|, else
    m = 1. That is `distance`; of these, `range` takes those beyond all levels alone, as rounding
    does where it clips: between two distant levels the estimate holds. With G = dL/dw^ and sums
    over the group,

        dL/da_i = sum m G s c_i        dL/dd2 = -m G s v        dL/dd3 = sum dL/dd2
        dL/dd1  = sum G w^ + dL/dd3    dL/dz_B = sum G s.

    For the estimate moves the level with x, dq = m (sum_i c_i da_i + dx), where dx = dv = -v (dd1 +
    dd2 + dd3) as z and h are constant, and ds = s dd1. So dw^ = w^ dd1 + s (dq + dz_B).

    Nothing of the weight's size is kept for the backward pass but the codes, one byte each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        d1: Tensor,
        d2: Tensor,
        d3: Tensor,
        a: Tensor,
        zb: Tensor,
        centre: Tensor,
        codes: Tensor,
        signs: Tensor,
        filtering: Filter,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """w^ (rows, g) in this dtype.

        X, d2 (rows, g); d1, d3, zb (rows, 1); a (rows, b); centre = z - h (rows, 1). codes: (rows,
        g) uint8. signs: (L, b) in {-1, +1}, in the dtype of a.
        """
        ctx.save_for_backward(X, d1, d2, d3, a, zb, centre, signs)
        ctx.codes = codes
        ctx.filtering = filtering
        # s (l + z_B + h - z), the weight that each code stands for.
        values = (a @ signs.T).add_(zb - centre).mul_(d1.exp())  # (rows, L)
        (weight,) = over_rows(_picked, codes, values.to(dtype or X.dtype))
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of X, d1, d2, d3, a, z_B, and of the others, which have none."""
        X, d1, d2, d3, a, zb, centre, signs = ctx.saved_tensors
        levels = a @ signs.T  # (rows, L)
        reach = a.abs().amin(1, keepdim=True)  # min_i |a_i|
        rows = (X, d1, d2, d3, zb, centre, ctx.codes, levels, reach, grads[0])
        gradients = over_rows(_gradients, *rows, signs=signs, filtering=ctx.filtering)
        return None, *gradients, None, None, None, None, None


def _picked(codes: Tensor, values: Tensor) -> tuple[Tensor]:
    """values (rows, L) at codes (rows, g)."""
    return (values.gather(1, codes.long()),)


def _gradients(
    X: Tensor,
    d1: Tensor,
    d2: Tensor,
    d3: Tensor,
    zb: Tensor,
    centre: Tensor,
    codes: Tensor,
    levels: Tensor,
    reach: Tensor,
    G: Tensor,
    signs: Tensor,
    filtering: Filter,
) -> tuple[Tensor, ...]:
    """Those of d1, d2, d3, a and z_B from G = dL/dw^ (rows, g); reach (rows, 1) is min_i |a_i|."""
    v = divided(X, d1, d2, d3)
    level = levels.gather(1, codes.long())
    Gs = G * d1.exp()
    grad_zb = Gs.sum(1, keepdim=True)
    grad_d1 = (Gs * level).sum(1, keepdim=True)
    if filtering != "none":
        y = v + (centre - zb)  # x - z_B = v + (z - h) - z_B
        if filtering == "range":
            level_or_end = y.clamp(levels.amin(1, keepdim=True), levels.amax(1, keepdim=True))
            distance = y.sub_(level_or_end).abs_()
        else:
            distance = y.sub_(level).abs_()
        Gs.mul_(distance.le_(reach))  # m G s from here on
    if Gs.device.type == "cpu":
        grad_a = sums_by_level(Gs, codes, signs)
    else:
        grad_a = sums_by_plane(Gs, codes, signs.shape[1])
    grad_d2 = v.mul_(Gs).neg_()
    grad_d3 = grad_d2.sum(1, keepdim=True)
    # sum G w^ = sum G s l + (z_B + h - z) sum G s
    grad_d1 += grad_d3 + grad_zb * (zb - centre)
    return grad_d1, grad_d2, grad_d3, grad_a, grad_zb


def sums_by_level(Gs: Tensor, codes: Tensor, signs: Tensor) -> Tensor:
    """(rows, b): the sums of Gs (rows, g) times the signs (L, b) of the codes (rows, g).

    c_i is the same for all weights of a level, so that b sums become one. On a GPU the additions to
    one level would wait for each other, and come in any order.
    """
    by_level = Gs.new_zeros(len(Gs), len(signs))
    return by_level.scatter_add_(1, codes.long(), Gs) @ signs


def sums_by_plane(Gs: Tensor, codes: Tensor, bits: int) -> Tensor:
    """(rows, b): as `sums_by_level`, plane by plane, of Gs (rows, g) and codes (rows, g) uint8."""
    opposite = -Gs
    sums = []
    for i in range(bits):
        positive = (codes & (1 << (bits - 1 - i))) != 0  # c_i = +1
        sums.append(torch.where(positive, Gs, opposite).sum(1))
    return torch.stack(sums, 1)
