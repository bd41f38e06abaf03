"""Lattice weights: an affine map of integer codes to short vectors, between Hadamard transforms.

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
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from qbench.errors import StoreError
from qbench.formats.hadamard import block_length, hadamard
from qbench.formats.packing import axes, bits_of, expect, pack, packed_length, unpack

Features = Literal["codes", "signs"]


@dataclass(frozen=True, eq=False)
class Lattice:
    """A weight of shape (out, in) on an affine image of an integer lattice, d inputs at a time.

    codes (uint8, (out, ceil(in*bits/8))): codes in 0..2^bits-1, packed along the inputs (see
    `qbench.formats.packing`).
    map (float16 or float32, (d, k)): from features to weights, k = d for the features `codes`,
    d * bits for `signs`.
    offset (float16 or float32, (d,)): added to each vector; or None: zero.
    su (float16 or float32, (in,)), sv (float16 or float32, (out,)): scales with signs.
    blocks: orders of the Hadamard blocks along the outputs and along the inputs.

    StoreError where parts do not fit.
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
        if self.features not in get_args(Features):
            raise StoreError(
                f"features={self.features!r} of a lattice weight are not known; known are "
                f"{' and '.join(get_args(Features))}: copy or quantize again"
            )
        d, k = axes("map", self.map, 2)
        (out,) = axes("sv", self.sv, 1)
        (columns,) = axes("su", self.su, 1)
        expect("codes", self.codes, (out, packed_length(columns, self.bits)), torch.uint8)
        expect("map", self.map, (d, k))
        expect("su", self.su, (columns,))
        expect("sv", self.sv, (out,))
        if self.offset is not None:
            expect("offset", self.offset, (d,))
        if self.blocks != (block_length(out), block_length(columns)):
            raise StoreError(
                f"Hadamard blocks {self.blocks} do not fit a lattice weight of shape "
                f"{(out, columns)}"
            )
        features_per_code = self.bits if self.features == "signs" else 1
        if k != d * features_per_code or columns % d:
            raise StoreError(
                f"a lattice map of shape {(d, k)} does not fit features={self.features!r} of "
                f"{self.bits} bits and {columns} inputs; expected (d, d) for codes, "
                f"(d, {self.bits}d) for signs, d dividing the inputs"
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
        """Pack a weight's codes, and choose blocks as large as the shape allows.

        codes (integer, (out, in)): in 0..2^bits-1. The rest is as it is stored.
        """
        out, columns = axes("codes", codes, 2)
        blocks = (block_length(out), block_length(columns))
        return cls(pack(codes, bits), map, offset, su, sv, bits, features, blocks)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return len(self.sv), len(self.su)

    def dequantize(self) -> Tensor:
        """The weight, (out, in) float32."""
        codes = unpack(self.codes, self.bits, len(self.su))
        features = features_of(codes, len(self.map), self.bits, self.features)
        offset = None if self.offset is None else self.offset.float()
        return decode(
            features, self.map.float(), offset, self.su.float(), self.sv.float(), self.blocks
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """What is stored: codes, map, su, sv and, unless it is None, offset."""
        tensors = {"codes": self.codes, "map": self.map, "su": self.su, "sv": self.sv}
        if self.offset is not None:
            tensors["offset"] = self.offset
        return tensors

    def spec(self) -> dict[str, Any]:
        """What reading needs beside the tensors: bits, features, blocks."""
        return {"bits": self.bits, "features": self.features, "blocks": list(self.blocks)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> Lattice:
        """The inverse of `to_tensors` and `spec`.

        StoreError where parts do not fit, KeyError where one is missing.
        """
        settings = dict(spec)
        settings["blocks"] = tuple(spec["blocks"])  # JSON made a list of it
        return cls(
            codes=tensors["codes"],
            map=tensors["map"],
            offset=tensors.get("offset"),
            su=tensors["su"],
            sv=tensors["sv"],
            **settings,
        )


def features_of(codes: Tensor, d: int, bits: int, kind: Features) -> Tensor:
    """What the map is applied to: (out, in/d, k) float32, of codes (uint8, (out, in))."""
    vectors = codes.unflatten(-1, (-1, d))  # (out, in/d, d)
    if kind == "codes":
        return vectors.float()
    return torch.cat(bits_of(vectors, bits), -1).float().mul_(2).sub_(1)  # {0, 1} -> {-1, +1}


def decode(
    features: Tensor,
    map: Tensor,
    offset: Tensor | None,
    su: Tensor,
    sv: Tensor,
    blocks: tuple[int, int],
) -> Tensor:
    """The weight (float32, (out, in)), differentiable in all parameters.

    features (float32, (out, in/d, k)): see `features_of`. map (d, k), offset (d,), su (in,), sv
    (out,) and blocks are as in `Lattice`, in float32.
    """
    W = features @ map.T  # (out, in/d, d)
    if offset is not None:
        W = W + offset
    along_outputs, along_inputs = blocks
    W = hadamard(W.flatten(1), along_inputs, 1)  # W~ T_in, (out, in)
    W = hadamard(W, along_outputs, 0)  # T_out W~ T_in
    return W * sv[:, None] * su
