"""Binary-coded weights whose inputs are rotated: random signs, then a Hadamard transform.

    W = B T diag(s),    W x = B (T (s * x)),

with B in binary coding, T the orthonormal block-diagonal Hadamard matrix of `hadamard.py`, and s in
{-1, +1}. T diag(s) is orthogonal, so that an error of B is one of the same size of W. A row of B is
near to Gaussian whatever the row of W is, which few levels serve better (QuIP#, Tseng et al. 2024,
arXiv:2402.04396).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qbench.errors import StoreError
from qbench.formats.binary import Binary
from qbench.formats.hadamard import block_length, hadamard
from qbench.formats.packing import expect, pack, packed_length, unpack


@dataclass(frozen=True, eq=False)
class RotatedBinary:
    """A weight of shape (out, in) that is binary-coded after a rotation of its inputs.

    coding: the coding of B. signs (uint8, (ceil(in/8),)): a bitmap of s, packed as the planes are;
    a set bit is +1. block: order of the Hadamard blocks along the inputs.

    StoreError where parts do not fit.
    """

    format: ClassVar[str] = "rotated-binary"

    coding: Binary
    signs: Tensor
    block: int

    def __post_init__(self) -> None:
        columns = self.coding.in_features
        expect("signs", self.signs, (packed_length(columns, 1),), torch.uint8)
        if self.block != block_length(columns):
            raise StoreError(
                f"Hadamard blocks of {self.block} do not fit a weight of {columns} inputs; "
                f"they are of {block_length(columns)}: quantize again"
            )

    @classmethod
    def from_coding(cls, coding: Binary, signs: Tensor) -> RotatedBinary:
        """coding: of `rotated(W, signs)`. signs (in,): positive where s is +1."""
        bitmap = pack((signs > 0).to(torch.uint8), 1)
        return cls(coding, bitmap, block_length(coding.in_features))

    @property
    def alpha(self) -> Tensor:
        """As of `Binary`."""
        return self.coding.alpha

    @property
    def shift(self) -> Tensor | None:
        """As of `Binary`."""
        return self.coding.shift

    @property
    def bits(self) -> int:
        """Number of planes."""
        return self.coding.bits

    @property
    def group_size(self) -> int:
        """Rotated inputs per group."""
        return self.coding.group_size

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.coding.shape

    def s(self) -> Tensor:
        """The signs, (in,) float32 in {-1, +1}."""
        return unpack(self.signs, 1, self.coding.in_features).float().mul_(2).sub_(1)

    def dequantize(self) -> Tensor:
        """The weight, (out, in) float32."""
        return rotated_back(self.coding.dequantize(), self.s())

    def to_tensors(self) -> dict[str, Tensor]:
        """What is stored: the parts of the coding, then signs."""
        return {**self.coding.to_tensors(), "signs": self.signs}

    def spec(self) -> dict[str, Any]:
        """What reading needs beside the tensors: that of the coding, and block."""
        return {**self.coding.spec(), "block": self.block}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> RotatedBinary:
        """The inverse of `to_tensors` and `spec`.

        StoreError where parts do not fit, KeyError where one is missing.
        """
        rest = dict(spec)
        block = rest.pop("block")
        return cls(Binary.from_tensors(tensors, rest), tensors["signs"], block)


def rotated(X: Tensor, s: Tensor) -> Tensor:
    """X diag(s) T, what multiplies T (s * x) in place of x; a new tensor, differentiable.

    X (..., in) float32 or float64; s (in,) in {-1, +1}. Of x itself it is T (s * x): T is its own
    transpose.
    """
    return hadamard(X * s, block_length(X.shape[-1]), X.ndim - 1)


def rotated_back(X: Tensor, s: Tensor) -> Tensor:
    """X T diag(s), the inverse of `rotated`; differentiable."""
    return hadamard(X, block_length(X.shape[-1]), X.ndim - 1) * s
