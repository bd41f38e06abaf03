"""Binary-coded (BCQ) weights: w = shift + sum_i alpha_i * c_i with c_i in {-1, +1}.

One alpha per plane i and one shift serve a group of consecutive inputs of one output. They are
stored in half precision, or as integers times a step per row (`qbench.formats.stepped`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qbench.errors import StoreError
from qbench.formats.packing import (
    axes,
    bits_of,
    expect,
    group_count,
    group_length,
    pack,
    packed_length,
    unpack,
)
from qbench.formats.stepped import (
    Numbers,
    Stepped,
    expect_numbers,
    from_parts,
    groups_of,
    to_parts,
    to_spec,
    values,
)
from qbench.formats.uniform import Uniform

SPAN = "alpha_span"  # the part that alpha and shift share


@dataclass(frozen=True, eq=False)
class Binary:
    """A binary-coded weight of shape (out, in), groups = in / group_size.

    planes (uint8, (bits, out, ceil(in/8))): a bitmap for each plane, in which bit k of byte j of a
    row is input 8j + k. A set bit is +1, the others are -1.
    stored_alpha (float16 or float32, (out, groups, bits)): the scale of each plane.
    stored_shift (float16 or float32, (out, groups)): the middle of the levels; or None: zero.

    Both may be `Stepped` numbers of one span; `alpha` and `shift` are tensors all the same.

    StoreError where parts do not fit.
    """

    format: ClassVar[str] = "binary"

    planes: Tensor
    stored_alpha: Numbers
    stored_shift: Numbers | None
    in_features: int
    group_size: int

    def __post_init__(self) -> None:
        groups = group_count(self.in_features, self.group_size)
        bits, out, _ = axes("planes", self.planes, 3)
        expect("planes", self.planes, (bits, out, packed_length(self.in_features, 1)), torch.uint8)
        alpha = self.stored_alpha
        shift = self.stored_shift
        expect_numbers("alpha", alpha, (out, groups, bits))
        if shift is None:
            return
        expect_numbers("shift", shift, (out, groups))
        spans = [part.span if isinstance(part, Stepped) else None for part in (alpha, shift)]
        if spans[0] is not spans[1]:
            raise StoreError(
                "alpha and shift of a binary weight do not share one span; give both as tensors, "
                "or both as stored_coding makes them"
            )

    @classmethod
    def from_planes(cls, planes: Tensor, alpha: Numbers, shift: Numbers | None) -> Binary:
        """Pack a weight's planes.

        planes (any number type, (bits, out, in)): positive where the code is +1. alpha (floating,
        (out, groups, bits)). shift (floating, (out, groups)), or None. Both may be as
        `qbench.formats.snapping.stored_coding` gives them.
        """
        _, _, in_features = axes("planes", planes, 3)
        bitmaps = [pack((plane > 0).to(torch.uint8), 1) for plane in planes]
        group_size = group_length(in_features, groups_of("alpha", alpha, 3))
        return cls(torch.stack(bitmaps), alpha, shift, in_features, group_size)

    @classmethod
    def from_uniform(cls, weight: Uniform) -> Binary:
        """The same weight in binary coding, in float32.

        code = sum_i 2^(b-i) (1 + c_i)/2 gives scale*(code - zero) = sum_i (scale*2^(b-1-i)) c_i +
        scale*(h - zero) with h = (2^b - 1)/2, i = 1 the most significant bit. Exact if the scales
        are stored in half precision and the zero points are integers: products of 11 and 9 bits
        fit float32. Otherwise products and sums are rounded to float32.
        """
        codes, scale, zero = weight.unpacked()
        planes = torch.stack(bits_of(codes.flatten(1), weight.bits))
        places = range(weight.bits - 1, -1, -1)  # place value of plane i is 2^(b-i)
        alpha = torch.stack([scale * 2.0 ** (place - 1) for place in places], -1)
        return cls.from_planes(planes, alpha, scale * ((2**weight.bits - 1) / 2 - zero))

    @property
    def alpha(self) -> Tensor:
        """The scale of each plane, (out, groups, bits) float16 or float32; made when it is read."""
        return values(self.stored_alpha)

    @property
    def shift(self) -> Tensor | None:
        """The middle of the levels, (out, groups) float16 or float32; made when it is read."""
        return values(self.stored_shift)

    @property
    def bits(self) -> int:
        """Number of planes."""
        return self.planes.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.planes.shape[1], self.in_features

    def signs(self, plane: int) -> Tensor:
        """The codes of one plane, (out, groups, group_size) float32 in {-1, +1}."""
        bitmap = unpack(self.planes[plane], 1, self.in_features)  # (out, in) in {0, 1}
        return bitmap.float().mul_(2).sub_(1).unflatten(1, (-1, self.group_size))

    def dequantize(self) -> Tensor:
        """The weight, (out, in) float32."""
        alpha = self.alpha.float()
        # Plane by plane and in place, so that no tensor of all planes is held.
        weight = self.signs(0).mul_(alpha[:, :, 0, None])  # (out, groups, group_size)
        for i in range(1, self.bits):
            weight.addcmul_(self.signs(i), alpha[:, :, i, None])
        shift = self.shift
        if shift is not None:
            weight += shift.float()[..., None]
        return weight.flatten(1)

    def to_tensors(self) -> dict[str, Tensor]:
        """What is stored.

        planes, alpha and, unless it is None, shift; or alpha_codes, shift_codes and alpha_span.
        """
        alpha = to_parts("alpha", self.stored_alpha, SPAN)
        shift = to_parts("shift", self.stored_shift, SPAN)
        return {"planes": self.planes} | alpha | shift

    def spec(self) -> dict[str, Any]:
        """What reading needs beside the tensors.

        in_features, group_size; with codes alpha_bits, alpha_places, shift_bits and shift_places.
        """
        alpha = to_spec("alpha", self.stored_alpha)
        shift = to_spec("shift", self.stored_shift)
        return {"in_features": self.in_features, "group_size": self.group_size} | alpha | shift

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> Binary:
        """The inverse of `to_tensors` and `spec`.

        StoreError where parts do not fit, KeyError where one is missing.
        """
        rest = dict(spec)
        groups = group_count(spec["in_features"], spec["group_size"])
        alpha = from_parts("alpha", tensors, rest, groups, SPAN)
        shift = from_parts("shift", tensors, rest, groups, SPAN, signed=True)
        if alpha is None:
            raise KeyError("alpha")
        return cls(tensors["planes"], alpha, shift, **rest)
