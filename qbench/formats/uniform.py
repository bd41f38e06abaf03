"""Uniform (affine integer) weights: w = scale * (code - zero_point).

One scale and one zero point serve a group of consecutive inputs of one output. They are stored in
half precision, or as integers times a step per row (`qbench.formats.stepped`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qbench.formats.packing import (
    axes,
    expect,
    group_count,
    group_length,
    pack,
    packed_length,
    unpack,
)
from qbench.formats.stepped import (
    Numbers,
    expect_numbers,
    from_parts,
    groups_of,
    to_parts,
    to_spec,
    values,
)

SCALE_SPAN = "scale_span"  # names of parts
ZERO_SPAN = "zero_point_span"


@dataclass(frozen=True, eq=False)
class Uniform:
    """A uniformly quantized weight of shape (out, in), groups = in / group_size.

    codes (uint8, (out, ceil(in*bits/8))): codes in 0..2^bits-1, packed along the inputs (see
    `qbench.formats.packing`).
    stored_scale (float16 or float32, (out, groups)): the distance between two levels.
    stored_zero (uint8, (out, ceil(groups*bits/8))): integers of `bits` bits, packed along the
    groups; or (floating, (out, groups)): real numbers; or None: 2^(bits-1), the midpoint of a
    symmetric grid.

    The scale, and a zero point of real numbers, may be `Stepped` numbers; `scale` and `zero_point`
    are tensors all the same.

    StoreError where parts do not fit.
    """

    format: ClassVar[str] = "uniform"

    codes: Tensor
    stored_scale: Numbers
    stored_zero: Numbers | None
    bits: int
    in_features: int
    group_size: int

    def __post_init__(self) -> None:
        groups = group_count(self.in_features, self.group_size)
        out, _ = axes("codes", self.codes, 2)
        expect("codes", self.codes, (out, packed_length(self.in_features, self.bits)), torch.uint8)
        expect_numbers("scale", self.stored_scale, (out, groups))
        zero = self.stored_zero
        if isinstance(zero, Tensor) and zero.dtype == torch.uint8:
            row = packed_length(groups, self.bits)
            expect("zero_point", zero, (out, row), torch.uint8)
        elif zero is not None:
            expect_numbers("zero_point", zero, (out, groups))

    @classmethod
    def from_codes(
        cls, codes: Tensor, scale: Numbers, zero_point: Numbers | None, bits: int
    ) -> Uniform:
        """Pack a weight's codes, and its zero points where they are integers.

        codes (integer, (out, in)): in 0..2^bits-1. scale (floating, (out, groups)). zero_point
        (uint8, (out, groups)): integers; or (floating, (out, groups)): real numbers; or None. Both
        may be as `stored_scale` and `stored_zero_points` of `qbench.formats.snapping` give them.
        """
        if isinstance(zero_point, Tensor) and zero_point.dtype == torch.uint8:
            zero_point = pack(zero_point, bits)
        _, in_features = axes("codes", codes, 2)
        group_size = group_length(in_features, groups_of("scale", scale, 2))
        return cls(pack(codes, bits), scale, zero_point, bits, in_features, group_size)

    @property
    def scale(self) -> Tensor:
        """The distance between two levels, (out, groups) float16 or float32; made when read."""
        return values(self.stored_scale)

    @property
    def zero_point(self) -> Tensor | None:
        """The zero point: packed integers (uint8), real numbers (out, groups), or None."""
        return values(self.stored_zero)

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
        zero = self.zero_point
        if zero is None:
            return codes, scale, torch.full_like(scale, 2.0 ** (self.bits - 1))
        if zero.dtype == torch.uint8:
            zero = unpack(zero, self.bits, scale.shape[1])
        return codes, scale, zero.float()

    def dequantize(self) -> Tensor:
        """The weight, (out, in) float32."""
        codes, scale, zero = self.unpacked()
        weight = (codes.float() - zero[..., None]) * scale[..., None]  # (out, groups, group_size)
        return weight.flatten(1)

    def to_tensors(self) -> dict[str, Tensor]:
        """What is stored.

        codes, scale and, unless it is None, zero_point; or scale_codes and scale_span in the place
        of scale, and likewise for zero_point.
        """
        scale = to_parts("scale", self.stored_scale, SCALE_SPAN)
        zero = to_parts("zero_point", self.stored_zero, ZERO_SPAN)
        return {"codes": self.codes} | scale | zero

    def spec(self) -> dict[str, Any]:
        """What reading needs beside the tensors.

        bits, in_features, group_size; with codes scale_bits, scale_places, zero_point_bits and
        zero_point_places.
        """
        sizes = {"bits": self.bits, "in_features": self.in_features, "group_size": self.group_size}
        return sizes | to_spec("scale", self.stored_scale) | to_spec("zero_point", self.stored_zero)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> Uniform:
        """The inverse of `to_tensors` and `spec`.

        StoreError where parts do not fit, KeyError where one is missing.
        """
        rest = dict(spec)
        groups = group_count(spec["in_features"], spec["group_size"])
        packed_length(spec["in_features"], spec["bits"])  # raises where 2^bits is no float
        middle = 2.0 ** (spec["bits"] - 1)
        scale = from_parts("scale", tensors, rest, groups, SCALE_SPAN)
        zero = from_parts("zero_point", tensors, rest, groups, ZERO_SPAN, True, middle)
        if scale is None:
            raise KeyError("scale")
        return cls(tensors["codes"], scale, zero, **rest)
