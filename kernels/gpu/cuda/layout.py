"""What the CUDA kernels read: one layout for all numbers of rows, derived once from a weight.

words int32 (tiles, chunks, P, 32, 4): tiles of 16 outputs, chunks of 256 inputs, both rounded up.
For a plane, lane 4 g + t (g 0..7, t 0..3) has one 128-bit load: the words of (inputs 0..127 of the
chunk, output g of the tile), (0..127, g + 8), (128..255, g), (128..255, g + 8). Bit i of a word is
input 128 half + 16 (i & 7) + 4 t + (i >> 3): what the fragments of m16n8k128 of bits and of
m16n8k16 of half precision both hold. A set bit is c = 1.

params (tiles, groups, 8, A, 2), float16 or float32: the numbers of the stored format, those of the
outputs g and g + 8 of a tile side by side.

    binary   w = shift + sum_p alpha_p (2 c_p - 1)        alpha_0, .., alpha_P-1[, shift]
    uniform  w = scale (sum_p 2^p c_p - zero_point)       scale, zero_point

Outputs, inputs and groups that pad have zero bits and zero parameters. Groups go over the padded
inputs: the last of them may be cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.formats import Binary, Uniform
from qbench.formats.packing import as_words, exact_half, unpack

TILE = 16  # outputs
CHUNK = 256  # inputs
SMALL_GROUPS = (32, 64)  # and all multiples of 128
HALF = torch.finfo(torch.float16)
HALF_SCALE = 64.0  # WEIGHT_SCALE of wide_rows.cu, for parameters in float32
HALF_OFFSET = 1024.0  # CODE_OFFSET of weights.cuh, which is added to a zero point

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CudaPlanes:
    """A binary or uniform weight (out, in) as the kernels read it.

    words, params: see above. shape: (out, in), without padding. group_size: inputs that share
    parameters, or 0: all. uniform: which of the two meanings the parameters have. shift: whether
    binary ones have one. in_half: whether half precision holds the weight (`_fits_half`).
    """

    words: Tensor
    params: Tensor
    shape: tuple[int, int]
    group_size: int
    uniform: bool
    shift: bool
    in_half: bool = True

    @cached_property
    def bits(self) -> int:
        """Number of planes P."""
        return self.words.shape[2]

    @cached_property
    def tiles(self) -> int:
        """Tiles of 16 outputs."""
        return self.words.shape[0]

    @cached_property
    def chunks(self) -> int:
        """Chunks of 256 inputs."""
        return self.words.shape[1]

    @cached_property
    def groups(self) -> int:
        """Groups over the padded inputs."""
        return self.params.shape[1]

    @cached_property
    def groups_of_chunk(self) -> int:
        """Groups whose parameters a chunk of 256 inputs has."""
        if self.group_size in SMALL_GROUPS:
            return CHUNK // self.group_size
        return 2 if self.group_size % CHUNK else 1

    @cached_property
    def meta32(self) -> bool:
        """Whether the parameters are float32."""
        return self.params.dtype == torch.float32

    @cached_property
    def group_bytes(self) -> int:
        """Bytes of the parameters of a tile and group."""
        return self.params.shape[2:].numel() * self.params.element_size()

    @property
    def nbytes(self) -> int:
        """Bytes that a product with one row reads."""
        return self.words.nbytes + self.params.nbytes

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, kept with the weight: what its launches need beside their tensors."""
        known = self._kept.get(key)
        if known is None:
            known = self._kept[key] = make()
        return known

    @cached_property
    def _kept(self) -> dict[Hashable, Any]:
        return {}

    def macros(self, dtype: torch.dtype) -> dict[str, int]:
        """What every source is compiled with, for x and y of this dtype."""
        return {
            "PLANES": self.bits,
            "UNIFORM": int(self.uniform),
            "SHIFT": int(self.shift),
            "GROUP": self.group_size,
            "META32": int(self.meta32),
            "BF16": int(dtype == torch.bfloat16),
        }


def derive(weight: WeightFormat) -> CudaPlanes:
    """The layout of a weight, on its device. ConfigError where it is not served."""
    if not isinstance(weight, Binary | Uniform):
        raise ConfigError(
            f"there are no CUDA kernels for the format {weight.format!r}; "
            f"multiply with the dequantized weight instead"
        )
    columns = weight.shape[1]
    refused = not_served(columns, weight.group_size)
    if refused is not None:
        raise ConfigError(f"{refused}; multiply with the dequantized weight instead")
    if isinstance(weight, Binary):
        bitmaps = weight.planes
        columns_of_params = [*weight.alpha.unbind(2)]
        if weight.shift is not None:
            columns_of_params.append(weight.shift)
    else:
        bitmaps = _bitmaps(weight)
        columns_of_params = [weight.scale, _zero_point(weight)]
    uniform = isinstance(weight, Uniform)
    params = _params(columns_of_params, columns, weight.group_size)
    return CudaPlanes(
        _words(bitmaps),
        params,
        weight.shape,
        0 if weight.group_size == columns else weight.group_size,
        uniform,
        isinstance(weight, Binary) and weight.shift is not None,
        _fits_half(params, len(bitmaps), uniform),
    )


def joined(parts: Sequence[CudaPlanes]) -> CudaPlanes | None:
    """Weights that read the same x as one, (sum of out, in); None where they differ too much.

    That is in their inputs, bits, groups, coding or dtype of parameters, or where one that others
    follow does not fill its tiles.
    """
    first = parts[0]
    for part in parts:
        alike = (
            part.shape[1] == first.shape[1]
            and part.bits == first.bits
            and (part.group_size, part.uniform) == (first.group_size, first.uniform)
            and (part.shift, part.params.dtype) == (first.shift, first.params.dtype)
        )
        if not alike or (part is not parts[-1] and part.shape[0] % TILE):
            return None
    return CudaPlanes(
        torch.cat([part.words for part in parts]),
        torch.cat([part.params for part in parts]),
        (sum(part.shape[0] for part in parts), first.shape[1]),
        first.group_size,
        first.uniform,
        first.shift,
        all(part.in_half for part in parts),
    )


def not_served(columns: int, group_size: int) -> str | None:
    """Why there are no kernels for groups of this size in so many inputs, or None."""
    if group_size == columns or group_size in SMALL_GROUPS or group_size % 128 == 0:
        return None
    return f"groups of {group_size} are neither 32, 64, a multiple of 128 nor all {columns} inputs"


def _words(bitmaps: Tensor) -> Tensor:
    """(P, out, ceil(in/8)) uint8 -> (tiles, chunks, P, 32, 4) int32.

    The 16 bytes of 128 inputs are byte 2 s + u for s 0..7 and u 0, 1, and word t of their output
    has in byte j the bits 4 t + j of s = 0..7: bytes of equal u are 8 x 8 bits, transposed.
    """
    planes, out, length = bitmaps.shape
    padded = pad(bitmaps, (0, -length % (CHUNK // 8), 0, -out % TILE))
    # (P, tiles, h, g, chunks, half, s, u), output 8 h + g
    bytes_ = padded.view(planes, -1, 2, 8, padded.shape[2] // (CHUNK // 8), 2, 8, 2)
    ordered = bytes_.permute(1, 4, 0, 3, 7, 5, 2, 6).contiguous()  # (.., P, g, u, half, h, s)
    square = _transposed(ordered.view(torch.int64).squeeze(-1))  # (.., P, g, u, half, h)
    pairs = square.view(torch.int32).unflatten(-1, (2, 2))  # t = 2 u + v: (.., u, half, h, v)
    words = pairs.permute(0, 1, 2, 3, 4, 7, 5, 6)  # (tiles, chunks, P, g, u, v, half, h)
    return words.reshape(*words.shape[:3], 32, 4).contiguous()


def _transposed(squares: Tensor) -> Tensor:
    """8 x 8 bits in each int64, byte by byte, transposed (Warren, Hacker's Delight, 7-3)."""
    for step, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        changed = (squares ^ (squares >> step)) & mask
        squares = squares ^ changed ^ (changed << step)
    return squares


def _bitmaps(weight: Uniform) -> Tensor:
    """(P, out, ceil(in/8)) uint8, plane p the bit of place value 2^p of the codes."""
    bits = weight.bits
    stream = pad(weight.codes, (0, -weight.codes.shape[1] % bits))
    octets = stream.unflatten(1, (-1, bits))  # (out, in/8, bits): 8 codes in each
    word = as_words(octets, 8)
    planes = []
    for p in range(bits):
        bitmap = (word >> p) & 1
        for i in range(1, 8):
            bitmap |= ((word >> (bits * i + p)) & 1) << i
        planes.append(bitmap.to(torch.uint8))
    return torch.stack(planes)


def _zero_point(weight: Uniform) -> Tensor:
    """(out, groups), float16 where that is exact, else float32."""
    zero = weight.zero_point
    if zero is None:
        return torch.full_like(weight.scale, 2.0 ** (weight.bits - 1), dtype=torch.float16)
    if zero.dtype == torch.uint8:
        return unpack(zero, weight.bits, weight.scale.shape[1]).half()
    return exact_half(zero)


def _params(parts: list[Tensor], columns: int, group_size: int) -> Tensor:
    """A parts (out, groups) -> (tiles, groups over padded inputs, 8, A, 2)."""
    half = all(part.dtype == torch.float16 for part in parts)
    dtype = torch.float16 if half else torch.float32
    stacked = torch.stack([part.to(dtype) for part in parts], -1)  # (out, groups, A)
    inputs = columns + -columns % CHUNK
    groups = 1 if group_size == columns else -(-inputs // group_size)
    out, present, _ = stacked.shape
    padded = pad(stacked, (0, 0, 0, groups - present, 0, -out % TILE))
    # (tiles, h, g, groups, A) -> (tiles, groups, g, A, h)
    return padded.unflatten(0, (-1, 2, 8)).permute(0, 3, 2, 4, 1).contiguous()


def _fits_half(params: Tensor, bits: int, uniform: bool) -> bool:
    """Whether half precision holds weights with these parameters, times 64 if those are float32.

    None may be too large, nor a uniform one's zero point. And of float32 parameters the largest
    weight, of uniform ones the largest scale, has to have all its bits: what is smaller loses
    little beside that.
    """
    single = params.dtype == torch.float32
    numbers = params.float() * (HALF_SCALE if single else 1.0)  # (tiles, groups, 8, A, 2)
    if uniform:
        scale = numbers[..., 0, :]
        zero = params[..., 1, :].float()
        weight = scale * torch.maximum(zero.abs(), (2**bits - 1 - zero).abs())
        largest = torch.maximum(weight, zero.abs() + HALF_OFFSET)
    else:
        scale = largest = numbers.abs().sum(3)
    too_large = (largest > HALF.max).any()
    return not bool(too_large | (scale.amax() < HALF.tiny) if single else too_large)
