"""Binary-coded (BCQ) weights: w = shift + sum_i alpha_i * c_i with c_i in {-1, +1}, per group of consecutive inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qbench.formats.packing import expect, group_count, pack, packed_length, unpack
from qbench.formats.uniform import Uniform


@dataclass(frozen=True, eq=False)
class Binary:
    """A binary-coded weight of shape (out, in), groups of `group_size` inputs. StoreError where parts do not fit.

    planes: uint8 (bits, out, ceil(in/8)), bitmaps, a set bit is +1. alpha: float16 or float32 (out,
    groups, bits). shift: float16 or float32 (out, groups), or None for zero.
    """

    format: ClassVar[str] = "binary"

    planes: Tensor
    alpha: Tensor
    shift: Tensor | None
    in_features: int
    group_size: int

    def __post_init__(self) -> None:
        groups = group_count(self.in_features, self.group_size)
        bits, out = self.planes.shape[:2] if self.planes.ndim == 3 else (-1, -1)
        expect("planes", self.planes, (bits, out, packed_length(self.in_features, 1)), torch.uint8)
        expect("alpha", self.alpha, (out, groups, bits))
        if self.shift is not None:
            expect("shift", self.shift, (out, groups))

    @classmethod
    def from_planes(cls, planes: Tensor, alpha: Tensor, shift: Tensor | None) -> Binary:
        """planes (bits, out, in), positive where the code is +1; alpha (out, groups, bits); shift (out, groups)."""
        bitmaps = torch.stack([pack((plane > 0).to(torch.uint8), 1) for plane in planes])
        return cls(bitmaps, alpha, shift, planes.shape[2], planes.shape[2] // alpha.shape[1])

    @classmethod
    def from_uniform(cls, weight: Uniform) -> Binary:
        """The same weight in binary coding, in float32.

        code = sum_i 2^(b-i) (1 + c_i)/2 gives scale*(code - zero) = sum_i (scale*2^(b-1-i)) c_i +
        scale*(h - zero) with h = (2^b - 1)/2, i = 1 the most significant bit. Exact for integer
        zero points: all products fit float32.
        """
        codes, scale, zero = weight.unpacked()
        places = range(weight.bits - 1, -1, -1)  # place value of plane i is 2^(b-i)
        planes = torch.stack([(codes.flatten(1) >> place) & 1 for place in places])
        alpha = torch.stack([scale * 2.0 ** (place - 1) for place in places], -1)
        return cls.from_planes(planes, alpha, scale * ((2**weight.bits - 1) / 2 - zero))

    @property
    def bits(self) -> int:
        """Number of planes."""
        return self.planes.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.planes.shape[1], self.in_features

    def signs(self, plane: int) -> Tensor:
        """(out, groups, group_size) float32 in {-1, +1}."""
        bitmap = unpack(self.planes[plane], 1, self.in_features)
        return bitmap.float().mul_(2).sub_(1).unflatten(1, (-1, self.group_size))

    def dequantize(self) -> Tensor:
        """(out, in) float32."""
        alpha = self.alpha.float()
        weight = self.signs(0).mul_(alpha[:, :, 0, None])  # (out, groups, group_size)
        for i in range(1, self.bits):
            weight.addcmul_(self.signs(i), alpha[:, :, i, None])
        if self.shift is not None:
            weight += self.shift.float()[..., None]
        return weight.flatten(1)

    def to_tensors(self) -> dict[str, Tensor]:
        """planes, alpha and, where there is one, shift."""
        tensors = {"planes": self.planes, "alpha": self.alpha}
        return tensors if self.shift is None else tensors | {"shift": self.shift}

    def spec(self) -> dict[str, Any]:
        """in_features, group_size."""
        return {"in_features": self.in_features, "group_size": self.group_size}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> Binary:
        """The inverse of `to_tensors` and `spec`."""
        return cls(tensors["planes"], tensors["alpha"], tensors.get("shift"), **spec)
