"""Greedy binary coding.

Guo, Yao, Zhao and Chen 2017, Network Sketching, arXiv:1706.02021, algorithm 1: take the sign of the residual as the
next plane and its mean magnitude as that plane's scale. Optimal for one plane, a start for the alternating method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qbench.contracts import Scheme
from qbench.formats import Binary
from qbench.formats.packing import as_stored


@dataclass(frozen=True)
class Greedy:
    """Binary coding one plane after the other. shift: subtract the group's mean first and store it."""

    name: ClassVar[str] = "greedy"
    paper: ClassVar[str] = "Guo et al., Network Sketching, CVPR 2017, arXiv:1706.02021"
    format: ClassVar[str] = "binary"
    bits: ClassVar[tuple[int, int]] = (1, 8)
    symmetric: ClassVar[bool] = False

    shift: bool = True

    def quantize_weight(self, weight: Tensor, scheme: Scheme) -> Binary:
        """(out, in) -> Binary. The planes are the residuals' signs, not the nearest levels."""
        W = weight.float().unflatten(1, (-1, scheme.group_length(weight.shape[1])))  # (out, groups, g)
        planes, alpha, shift = greedy_planes(W, scheme.bits, self.shift)
        return Binary.from_planes(planes.flatten(2), as_stored(alpha), as_stored(shift) if self.shift else None)


def greedy_planes(W: Tensor, bits: int, shifted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(..., g) -> planes bool (bits, ..., g), alpha (..., bits), shift (...). sign(0) is +1: every code is legal."""
    shift = W.mean(-1) if shifted else W.new_zeros(W.shape[:-1])
    residual = W - shift[..., None]
    planes, alphas = [], []
    for _ in range(bits):
        plane = residual >= 0
        alpha = residual.abs().mean(-1)
        residual = residual - torch.where(plane, alpha[..., None], -alpha[..., None])
        planes.append(plane)
        alphas.append(alpha)
    return torch.stack(planes), torch.stack(alphas, -1), shift
