"""Lattice weights: an affine map from integer codes to short vectors of weights, between two Hadamard transforms.

    W = diag(sv) T_out W~ T_in diag(su),    W~[r, jd : jd + d] = map f(z[r, jd : jd + d]) + offset

with T orthonormal block-diagonal Hadamard matrices, z integer codes, and one map (d, k) for the
whole matrix. The features f(z) are the d codes themselves, or the d * bits signs in {-1, +1} of
their bits, all of the most significant bit first. As z = (2^b - 1) / 2 + sum_p 2^(b-1-p) s_p, p = 1
the most significant, a map A of the codes is the map [2^(b-2) A, .., A, A / 2] of the signs, with
another offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from qbench.errors import StoreError
from qbench.formats.hadamard import block_length, hadamard
from qbench.formats.packing import expect, pack, packed_length, unpack

Features = Literal["codes", "signs"]


@dataclass(frozen=True, eq=False)
class Lattice:
    """A weight of shape (out, in) on an affine image of an integer lattice, d consecutive inputs at a time.

    codes: uint8 (out, ceil(in*bits/8)), packed codes in 0..2^bits-1. map: float16 or float32 (d,
    k), k = d for features `codes`, d * bits for `signs`. offset: (d,), or None for zero. su: (in,),
    sv: (out,): scales with signs. blocks: orders of the Hadamard blocks along the outputs and the
    inputs.
    """

    format: ClassVar[str] = "lattice"

    codes: Tensor
    map: Tensor
    offset: Tensor | None
    su: Tensor
    sv: Tensor
    bits: int
    features: Features
    blocks: tuple[int, int]

    def __post_init__(self) -> None:
        d, k = self.map.shape if self.map.ndim == 2 else (0, 0)
        out, columns = len(self.sv), len(self.su)
        expect("codes", self.codes, (out, packed_length(columns, self.bits)), torch.uint8)
        expect("map", self.map, (d, k))
        expect("su", self.su, (columns,))
        expect("sv", self.sv, (out,))
        if self.offset is not None:
            expect("offset", self.offset, (d,))
        if self.blocks != (block_length(out), block_length(columns)):
            raise StoreError(
                f"Hadamard blocks {self.blocks} do not fit a lattice weight of shape {(out, columns)}"
            )
        if not d or k != d * (self.bits if self.features == "signs" else 1) or columns % d:
            raise StoreError(
                f"a lattice map of shape {(d, k)} does not fit features={self.features!r} of {self.bits} bits and "
                f"{columns} inputs; expected (d, d) for codes, (d, {self.bits}d) for signs, d dividing the inputs"
            )

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        map: Tensor,
        offset: Tensor | None,
        su: Tensor,
        sv: Tensor,
        bits: int,
        features: Features,
    ) -> Lattice:
        """codes (out, in) integers; the rest as it is stored; blocks as large as the shape allows."""
        blocks = block_length(codes.shape[0]), block_length(codes.shape[1])
        return cls(pack(codes, bits), map, offset, su, sv, bits, features, blocks)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return len(self.sv), len(self.su)

    def dequantize(self) -> Tensor:
        """(out, in) float32."""
        codes = unpack(self.codes, self.bits, len(self.su))
        f = features_of(codes, len(self.map), self.bits, self.features)
        offset = None if self.offset is None else self.offset.float()
        return decode(f, self.map.float(), offset, self.su.float(), self.sv.float(), self.blocks)

    def to_tensors(self) -> dict[str, Tensor]:
        """codes, map, su, sv and, where there is one, offset."""
        tensors = {"codes": self.codes, "map": self.map, "su": self.su, "sv": self.sv}
        return tensors if self.offset is None else tensors | {"offset": self.offset}

    def spec(self) -> dict[str, Any]:
        """bits, features, blocks."""
        return {"bits": self.bits, "features": self.features, "blocks": list(self.blocks)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> Lattice:
        """The inverse of `to_tensors` and `spec`."""
        parts = (
            tensors["codes"],
            tensors["map"],
            tensors.get("offset"),
            tensors["su"],
            tensors["sv"],
        )
        return cls(*parts, **(dict(spec) | {"blocks": tuple(spec["blocks"])}))


def features_of(codes: Tensor, d: int, bits: int, kind: Features) -> Tensor:
    """(out, in) uint8 -> (out, in/d, k) float32, what the map is applied to."""
    vectors = codes.unflatten(-1, (-1, d))
    if kind == "codes":
        return vectors.float()
    planes = [(vectors >> p) & 1 for p in range(bits - 1, -1, -1)]
    return torch.cat(planes, -1).float().mul_(2).sub_(1)


def decode(
    features: Tensor,
    map: Tensor,
    offset: Tensor | None,
    su: Tensor,
    sv: Tensor,
    blocks: tuple[int, int],
) -> Tensor:
    """(out, in/d, k) features -> the weight (out, in), differentiable in all parameters; float32."""
    W = features @ map.T
    if offset is not None:
        W = W + offset
    W = hadamard(hadamard(W.flatten(1), blocks[1], 1), blocks[0], 0)
    return W * sv[:, None] * su
