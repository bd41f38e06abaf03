"""Uniform (affine integer) weights: w = scale * (code - zero_point), per group of consecutive inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qbench.formats.packing import expect, group_count, pack, packed_length, unpack


@dataclass(frozen=True, eq=False)
class Uniform:
    """A uniformly quantized weight of shape (out, in), groups of `group_size` inputs.

    codes: uint8 (out, ceil(in*bits/8)), packed codes in 0..2^bits-1. scale: float16 or float32
    (out, groups). zero_point: uint8 (out, ceil(groups*bits/8)), packed integers of `bits` bits; or
    floating (out, groups), real; or None, the midpoint 2^(bits-1) of a symmetric grid. StoreError
    where parts do not fit.
    """

    format: ClassVar[str] = "uniform"

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bits: int
    in_features: int
    group_size: int

    def __post_init__(self) -> None:
        groups = group_count(self.in_features, self.group_size)
        out = self.codes.shape[0] if self.codes.ndim == 2 else -1
        expect("codes", self.codes, (out, packed_length(self.in_features, self.bits)), torch.uint8)
        expect("scale", self.scale, (out, groups))
        if self.zero_point is not None and self.zero_point.dtype == torch.uint8:
            expect(
                "zero_point", self.zero_point, (out, packed_length(groups, self.bits)), torch.uint8
            )
        elif self.zero_point is not None:
            expect("zero_point", self.zero_point, (out, groups))

    @classmethod
    def from_codes(
        cls, codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int
    ) -> Uniform:
        """codes (out, in) integers, scale (out, groups), zero_point (out, groups): integers where uint8, else real."""
        packed_zero = (
            pack(zero_point, bits)
            if zero_point is not None and zero_point.dtype == torch.uint8
            else zero_point
        )
        group_size = codes.shape[1] // scale.shape[1]
        return cls(pack(codes, bits), scale, packed_zero, bits, codes.shape[1], group_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.codes.shape[0], self.in_features

    def unpacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """codes uint8 (out, groups, group_size), scale float32 (out, groups), zero point float32 (out, groups)."""
        codes = unpack(self.codes, self.bits, self.in_features).unflatten(1, (-1, self.group_size))
        scale = self.scale.float()
        if self.zero_point is None:
            zero = torch.full_like(scale, 2.0 ** (self.bits - 1))
        elif self.zero_point.dtype == torch.uint8:
            zero = unpack(self.zero_point, self.bits, scale.shape[1]).float()
        else:
            zero = self.zero_point.float()
        return codes, scale, zero

    def dequantize(self) -> Tensor:
        """(out, in) float32."""
        codes, scale, zero = self.unpacked()
        return ((codes.float() - zero[..., None]) * scale[..., None]).flatten(1)

    def to_tensors(self) -> dict[str, Tensor]:
        """codes, scale and, unless symmetric, zero_point."""
        tensors = {"codes": self.codes, "scale": self.scale}
        return tensors if self.zero_point is None else tensors | {"zero_point": self.zero_point}

    def spec(self) -> dict[str, Any]:
        """bits, in_features, group_size."""
        return {"bits": self.bits, "in_features": self.in_features, "group_size": self.group_size}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> Uniform:
        """The inverse of `to_tensors` and `spec`."""
        return cls(tensors["codes"], tensors["scale"], tensors.get("zero_point"), **spec)
