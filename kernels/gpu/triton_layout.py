"""What the GPU kernels read: bit planes in 32-bit words, derived once from the stored format.

words int32 (in/32, P, out): bit s of a word is input 2s of its 32, bit 16 + s is input 2s + 1. So
one shift and one mask bring the bits of two neighbouring inputs to the sign bits of two 16-bit
numbers in a register. The P planes of 32 inputs lie together, and neighbouring threads read
neighbouring words: the outputs are the fastest axis.

binary   w = shift_g + sum_p alpha_gp c_p
         alpha (groups, P, out), shift (groups, out) or None
uniform  w = alpha_g (shift_g + sum_p 2^(P-2-p) c_p)
         alpha (groups, 1, out) the scale, shift (groups, out) = (2^P - 1)/2 - zero point

with c in {-1, +1}, plane 0 of uniform codes the most significant bit. Both hold the numbers of the
stored format: the products on the right are exact in float32 for integer zero points. Groups are
multiples of 32 inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.formats import Binary, Lattice, Uniform
from qbench.formats.hadamard import hadamard
from qbench.formats.packing import bits_of, exact_half, pack, unpack
from qbench.kernels.contract import WORD, not_whole_words


@dataclass(frozen=True, eq=False)
class Planes:
    """A binary or uniform weight (out, in) as its derived parts.

    words int32 (in/32, P, out); alpha floating (groups, P or 1, out); shift floating (groups, out)
    or None; uniform: which of the two meanings above they have.
    """

    words: Tensor
    alpha: Tensor
    shift: Tensor | None
    group_size: int
    uniform: bool

    @property
    def bits(self) -> int:
        """Number of planes P."""
        return self.words.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.words.shape[2], WORD * self.words.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that a product with one row reads."""
        size = self.words.nbytes + self.alpha.nbytes
        if self.shift is not None:
            size += self.shift.nbytes
        return size

    def to(self, device: str) -> Planes:
        """The same weight on a device."""
        shift = self.shift
        if shift is not None:
            shift = shift.to(device)
        return replace(self, words=self.words.to(device), alpha=self.alpha.to(device), shift=shift)


@dataclass(frozen=True, eq=False)
class LatticePlanes:
    """A lattice weight as a product of transformed inputs with plain codes.

    W = diag(sv) T_out W~ T_in diag(su), and a vector of W~ is map f(z) + offset. So with v = T_in
    diag(su) x, W~ v = sum_j f(z_j) . (map^T v_j) + offset . sum_j v_j: the map goes to the inputs,
    and the codes stay integers. planes: the features f, uniform with scale 1 for `codes`; for
    `signs` one plane of bits * in inputs, bit by bit. map (d, k), offset (d,) or None, su (in,), sv
    (out,): float32. blocks: orders of the Hadamard blocks, out and in.
    """

    planes: Planes
    map: Tensor
    offset: Tensor | None
    su: Tensor
    sv: Tensor
    blocks: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return len(self.sv), len(self.su)

    @property
    def nbytes(self) -> int:
        """Bytes that a product with one row reads."""
        size = self.planes.nbytes + self.map.nbytes + self.su.nbytes + self.sv.nbytes
        if self.offset is not None:
            size += self.offset.nbytes
        return size

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (m, in) -> what `planes` multiplies, (m, in) or (m, bits * in), in the dtype of x.

        And the product with the offset, (m, 1) float32, or None.
        """
        d, k = self.map.shape
        v = hadamard(x.float() * self.su, self.blocks[1], 1).unflatten(1, (-1, d))  # (m, in/d, d)
        # map^T v_j has k/d numbers for each of the d places of a vector: of `codes` one, of `signs`
        # one for each bit. Bit by bit they go into the order of the planes.
        mapped = (v @ self.map).unflatten(2, (k // d, d)).transpose(1, 2)  # (m, k/d, in/d, d)
        offset = None
        if self.offset is not None:
            offset = (v @ self.offset).sum(1, keepdim=True)
        return mapped.flatten(1).to(x.dtype), offset

    def outputs(self, y: Tensor, offset: Tensor | None) -> Tensor:
        """y (m, out) float32, the product with `planes` -> (m, out) float32."""
        if offset is not None:
            y = y + offset
        return hadamard(y, self.blocks[0], 1) * self.sv


def derive(weight: WeightFormat) -> Planes | LatticePlanes:
    """The derived layout, on the device of the weight. ConfigError where it is not served."""
    refused = not_served(weight)
    if refused is not None:
        raise ConfigError(f"{refused}; multiply with the dequantized weight instead")
    if isinstance(weight, Binary):
        alpha = weight.alpha.permute(1, 2, 0).contiguous()  # (groups, P, out)
        shift = None if weight.shift is None else weight.shift.T.contiguous()
        return Planes(_words(weight.planes), alpha, shift, weight.group_size, uniform=False)
    if isinstance(weight, Uniform):
        codes, _, zero = weight.unpacked()
        words = _words(_bitmaps(codes.flatten(1), weight.bits))
        scale = weight.scale.T.unsqueeze(1).contiguous()  # (groups, 1, out)
        # q = (2^P - 1)/2 + sum_p 2^(P-2-p) c_p, and the zero point is taken off.
        center = exact_half((2**weight.bits - 1) / 2 - zero).T.contiguous()  # (groups, out)
        return Planes(words, scale, center, weight.group_size, uniform=True)
    if isinstance(weight, Lattice):
        return _lattice(weight)
    raise ConfigError(f"format {weight.format!r} has no planes")


def not_served(weight: WeightFormat) -> str | None:
    """Why the GPU kernels do not take a weight, or None where they do."""
    if not isinstance(weight, (Binary, Uniform, Lattice)):
        return f"there are no GPU kernels for the format {weight.format!r}"
    group_size = None if isinstance(weight, Lattice) else weight.group_size
    return not_whole_words(weight.shape[1], group_size)


def _lattice(weight: Lattice) -> LatticePlanes:
    codes = unpack(weight.codes, weight.bits, weight.shape[1])
    bitmaps = _bitmaps(codes, weight.bits)
    ones = torch.ones(1, 1, weight.shape[0], dtype=torch.float16, device=codes.device)
    if weight.features == "codes":
        center = torch.full_like(ones[0], (2**weight.bits - 1) / 2)
        planes = Planes(_words(bitmaps), ones, center, weight.shape[1], uniform=True)
    else:
        # One plane of bits * in inputs: the planes of the codes, one after the other.
        words = _words(bitmaps).transpose(0, 1).reshape(-1, 1, len(weight.sv))
        planes = Planes(words, ones, None, WORD * len(words), uniform=False)
    offset = None if weight.offset is None else weight.offset.float()
    return LatticePlanes(
        planes, weight.map.float(), offset, weight.su.float(), weight.sv.float(), weight.blocks
    )


def _bitmaps(codes: Tensor, bits: int) -> Tensor:
    """(out, in) uint8 -> (bits, out, in/8) uint8, the most significant bit first."""
    return torch.stack([pack(plane, 1) for plane in bits_of(codes, bits)])


def _words(bitmaps: Tensor) -> Tensor:
    """(P, out, in/8) uint8 -> (in/32, P, out) int32: even inputs in the low half, odd above."""
    words = bitmaps.clone().view(torch.int32).long()  # a little-endian stream; the copy is aligned
    # Bit 2s of a word goes to bit s, bit 2s + 1 to bit 16 + s.
    halves = _even_bits(words) | _even_bits(words >> 1) << 16  # (P, out, in/32)
    return halves.to(torch.int32).permute(2, 0, 1).contiguous()


def _even_bits(words: Tensor) -> Tensor:
    """Bits 0, 2, .., 30 of each 64-bit word, moved together into its low 16."""
    # Each step closes the gaps between runs of 1, 2, 4 and 8 bits, and drops what lies between.
    words = words & 0x55555555
    for step, mask in ((1, 0x33333333), (2, 0x0F0F0F0F), (4, 0x00FF00FF), (8, 0x0000FFFF)):
        words = (words | words >> step) & mask
    return words
