"""Rotations of a layer's inputs by random signs and Hadamard transforms, for methods that round.

With Q = T diag(s), orthogonal, W x = (W Q^T) (Q x). So a method that rounds W for inputs with the
Hessian H rounds W Q^T for inputs with Q H Q^T instead, and Q x is computed where the weight is
multiplied (`qbench.formats.rotated_binary`), as in `unisvq` and QuIP# (Tseng et al. 2024,
arXiv:2402.04396): nothing is folded into the layers before, so that any layer can have it. Outliers
are spread over a block of the transform, in the weights as in the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.calibration.reconstruction import TrainedWeight
from qbench.calibration.training import Groups
from qbench.contracts import LinearStats
from qbench.formats import Binary, RotatedBinary
from qbench.formats.hadamard import block_length, hadamard
from qbench.formats.rotated_binary import rotated_back

SEED = 0  # of the signs: layers that share their inputs share them


def random_signs(n: int, seed: int, like: Tensor) -> Tensor:
    """(n,) float32 in {-1, +1}, on the device of `like`; the same values on every device."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (n,), generator=generator)
    return (bits * 2.0 - 1).to(like.device)


def two_sided(X: Tensor) -> Tensor:
    """T_m X T_n of X (m, n) float32, T block-diagonal with Hadamard matrices as large as fit."""
    m, n = X.shape
    XT = hadamard(X, block_length(n), 1)
    return hadamard(XT, block_length(m), 0)


def input_signs(weight: Tensor) -> Tensor:
    """s (in,) for a weight (out, in)."""
    return random_signs(weight.shape[1], SEED, weight)


def rotated_stats(stats: LinearStats, s: Tensor) -> LinearStats:
    """The statistics of Q x for those of x: Q H Q^T. s (in,): the signs."""
    hessian = two_sided(stats.hessian.float() * s * s[:, None])
    return LinearStats(hessian, stats.count)


class RotatedWeight(TrainedWeight):
    """A weight in training; `coding` stands for W Q^T."""

    def __init__(self, coding: TrainedWeight, s: Tensor) -> None:
        """s (in,): the signs."""
        super().__init__()
        self.coding = coding
        self.s = s

    def forward(self) -> Tensor:
        """(out, in) in the dtype of the products; the rotation is computed in float32."""
        weight = rotated_back(self.coding(), self.s)
        return weight if self.products is None else weight.to(self.products)

    @torch.no_grad()
    def export(self) -> RotatedBinary:
        """The coding as it is stored, and the signs."""
        coding = self.coding.export()
        assert isinstance(coding, Binary)
        return RotatedBinary.from_coding(coding, self.s)

    def groups(self) -> Groups:
        """Those of the coding."""
        return self.coding.groups()
