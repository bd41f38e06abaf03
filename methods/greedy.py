"""Greedy binary coding.

Guo, Yao, Zhao and Chen 2017, Network Sketching, arXiv:1706.02021: take the sign of the residual as
the next plane, and its mean magnitude as the scale (algorithm 1), or fit all scales again
(algorithm 2). Optimal for one plane without a shift, and a start for the alternating method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qbench.contracts import Scheme
from qbench.formats import Binary
from qbench.formats.snapping import half_coding


@dataclass(frozen=True)
class Greedy:
    """Binary coding one plane after the other.

    shift: subtract the group's mean first, and store it.
    refine: fit all scales and the shift by least squares after every new plane (algorithm 2 of the
        paper). Without it each plane keeps its first scale (algorithm 1), and no weight can be
        larger than the sum of the scales.
    """

    name: ClassVar[str] = "greedy"
    paper: ClassVar[str] = "Guo et al., Network Sketching, CVPR 2017, arXiv:1706.02021"
    format: ClassVar[str] = "binary"
    bits: ClassVar[tuple[int, int]] = (1, 8)
    symmetric: ClassVar[bool] = False

    shift: bool = True
    refine: bool = True

    def quantize_weight(self, weight: Tensor, scheme: Scheme) -> Binary:
        """weight (out, in), floating: -> Binary.

        The planes are the residuals' signs, not the nearest levels.
        """
        group = scheme.group_length(weight.shape[1])
        W = weight.float().unflatten(1, (-1, group))  # (out, groups, g)
        planes, alpha, shift = greedy_planes(W, scheme.bits, self.shift, self.refine)
        # (bits, out, in), (out, groups, bits) and (out, groups)
        coding = half_coding(alpha, shift if self.shift else None)
        return Binary.from_planes(planes.flatten(2), *coding)


def greedy_planes(
    W: Tensor, bits: int, shifted: bool, refine: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """planes bool (bits, ..., g), alpha (..., bits), shift (...) of W (..., g).

    shifted, refine: as `shift` and `refine` of `Greedy`. sign(0) is +1: every code is legal.
    """
    planes: list[Tensor] = []
    shift = W.mean(-1) if shifted else W.new_zeros(W.shape[:-1])
    alpha = W.new_zeros(*W.shape[:-1], 0)
    residual = W - shift[..., None]
    for _ in range(bits):
        planes.append(residual >= 0)
        if refine:
            columns = torch.stack([plane * 2.0 - 1 for plane in planes], -1)  # (..., g, planes)
            alpha, shift = fit_scales(W, columns, shifted)
            coded = (columns @ alpha[..., None])[..., 0]  # sum_i alpha_i c_i, (..., g)
            residual = W - shift[..., None] - coded
        else:
            # The least |r - a c|^2 with c = sign(r) is at a = c . r / g = mean|r|.
            scale = residual.abs().mean(-1, keepdim=True)  # (..., 1)
            alpha = torch.cat([alpha, scale], -1)
            residual = residual - torch.where(planes[-1], scale, -scale)
    return torch.stack(planes), alpha, shift


def fit_scales(W: Tensor, columns: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """Least-squares scales (..., k) and shift (...) of W (..., g) over columns (..., g, k).

    The normal equations C^T C theta = C^T w; shifted: the first column of C is 1, and the first
    unknown the shift, which else is zero.
    """
    if shifted:
        columns = torch.cat([torch.ones_like(columns[..., :1]), columns], -1)
    k = columns.shape[-1]
    gram = columns.mT @ columns  # (..., k, k)
    right = (columns.mT @ W[..., None])[..., 0]  # (..., k)
    theta = solve_positive(gram.view(-1, k, k), right.view(-1, k)).reshape(right.shape)
    if shifted:
        return theta[..., 1:], theta[..., 0]
    return theta, W.new_zeros(W.shape[:-1])


def solve_positive(A: Tensor, y: Tensor) -> Tensor:
    """x (rows, k) with A x = y, for many small systems at once, by Gaussian elimination.

    A (rows, k, k) positive semidefinite, y (rows, k), both of one floating dtype. A vanishing pivot
    means a column that depends on the earlier ones (two equal planes, an empty group of cells): its
    unknown is set to zero, and the rest is still a least-squares solution. Vectorized over rows:
    LAPACK would be called once per row.
    """
    k = y.shape[1]
    # (k, k + 1, rows): the augmented systems, with one entry of all of them contiguous.
    system = torch.cat([A, y[:, :, None]], 2).permute(1, 2, 0).contiguous()
    # Columns of signs have c . c = g: A_00 is the number of weights, which pivots are measured by.
    floor = A[:, 0, 0].clamp_min(1) * 1e-9
    # Forward: row i gets the pivot 1, or becomes zero, and leaves the rows below. Entries below the
    # diagonal are not read again, and stay as they are.
    for i in range(k):
        pivot = system[i, i].clone()
        system[i] *= torch.where(pivot > floor, 1 / pivot, 0)
        system[i + 1 :, i + 1 :] -= system[i + 1 :, i, None] * system[i, i + 1 :]
    # Backward: x_i = y_i - sum over j > i of A_ij x_j.
    x = system[:, k].clone()
    for i in range(k - 2, -1, -1):
        x[i] -= (system[i, i + 1 : k] * x[i + 1 :]).sum(0)
    return x.T
