"""Uniform (affine integer) weights: w = scale * (code - zero_point).

One scale and one zero point serve a group of consecutive inputs of one output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qbench.formats.packing import expect, group_count, pack, packed_length, unpack


@dataclass(frozen=True, eq=False)
class Uniform:
    """A uniformly quantized weight of shape (out, in), groups = in / group_size.

    codes (uint8, (out, ceil(in*bits/8))): codes in 0..2^bits-1, packed along the inputs (see
    `qbench.formats.packing`).
    scale (float16 or float32, (out, groups)): the distance between two levels.
    zero_point (uint8, (out, ceil(groups*bits/8))): integers of `bits` bits, packed along the
    groups; or (floating, (out, groups)): real numbers; or None: 2^(bits-1), the midpoint of a
    symmetric grid.

    StoreError where parts do not fit.
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
        if self.zero_point is None:
            return
        if self.zero_point.dtype == torch.uint8:
            row = packed_length(groups, self.bits)
            expect("zero_point", self.zero_point, (out, row), torch.uint8)
        else:
            expect("zero_point", self.zero_point, (out, groups))

    @classmethod
    def from_codes(
        cls, codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int
    ) -> Uniform:
        """Pack a weight's codes, and its zero points where they are integers.

        codes (integer, (out, in)): in 0..2^bits-1. scale (floating, (out, groups)). zero_point
        (uint8, (out, groups)): integers; or (floating, (out, groups)): real numbers; or None.
        """
        if zero_point is not None and zero_point.dtype == torch.uint8:
            zero_point = pack(zero_point, bits)
        in_features = codes.shape[1]
        group_size = in_features // scale.shape[1]
        return cls(pack(codes, bits), scale, zero_point, bits, in_features, group_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.codes.shape[0], self.in_features

    def unpacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """(codes, scale, zero_point), the latter two with an entry per group.

        codes (uint8, (out, groups, group_size)); scale, zero_point (float32, (out, groups)).
        """
        codes = unpack(self.codes, self.bits, self.in_features)
        codes = codes.unflatten(1, (-1, self.group_size))  # (out, groups, group_size)
        scale = self.scale.float()
        if self.zero_point is None:
            zero = torch.full_like(scale, 2.0 ** (self.bits - 1))
        elif self.zero_point.dtype == torch.uint8:
            zero = unpack(self.zero_point, self.bits, scale.shape[1]).float()
        else:
            zero = self.zero_point.float()
        return codes, scale, zero

    def dequantize(self) -> Tensor:
        """The weight, (out, in) float32."""
        codes, scale, zero = self.unpacked()
        weight = (codes.float() - zero[..., None]) * scale[..., None]  # (out, groups, group_size)
        return weight.flatten(1)

    def to_tensors(self) -> dict[str, Tensor]:
        """What is stored: codes, scale and, unless it is None, zero_point."""
        tensors = {"codes": self.codes, "scale": self.scale}
        if self.zero_point is not None:
            tensors["zero_point"] = self.zero_point
        return tensors

    def spec(self) -> dict[str, Any]:
        """What reading needs beside the tensors: bits, in_features, group_size."""
        return {"bits": self.bits, "in_features": self.in_features, "group_size": self.group_size}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> Uniform:
        """The inverse of `to_tensors` and `spec`."""
        return cls(tensors["codes"], tensors["scale"], tensors.get("zero_point"), **spec)
