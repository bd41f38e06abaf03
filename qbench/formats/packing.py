"""Packing of small integer codes into bytes, exact both ways, and the dtype of group parameters.

Layout: a little-endian bit stream along the last axis. Code k of a row occupies the row's bits
k*b .. k*b + b - 1, so 8 codes of b bits take exactly b bytes, and a row of n codes takes
ceil(n*b/8) bytes, of which the last bits are zero. One bit per code makes bitmaps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qbench.errors import StoreError

NOTHING = 1e-11  # above the scale of a group of zeros, which methods divide by
DISTORTED = 1 / 32  # of a number: by more than that none is off for being stored in float16
# (256, 8): the 8 codes in each byte of a bitmap
_BITS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).to(torch.uint8)


def packed_length(n: int, bits: int) -> int:
    """Bytes that n codes of `bits` bits take; StoreError unless bits are from 1 to 8."""
    if not _is_whole(bits) or not 1 <= bits <= 8:
        raise StoreError(f"codes of bits={bits!r} cannot be packed; give 1 to 8 bits")
    return -(-n * bits // 8)


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (whole numbers, (..., n)) in 0..2^bits-1: (..., ceil(n*bits/8)) uint8.

    StoreError unless bits are from 1 to 8, and hold every code.
    """
    n = codes.shape[-1]
    length = packed_length(n, bits)
    _require_codes(codes, bits)
    octets = torch.nn.functional.pad(codes, (0, -n % 8)).unflatten(-1, (-1, 8))  # (..., n/8, 8)
    # 8 codes of at most 8 bits fit one 64-bit word, whose sign bit is a bit like any other.
    word = as_words(octets, bits)  # (..., n/8)
    bytes_of_octet = [(word >> (8 * j)) & 0xFF for j in range(bits)]
    stream = torch.stack(bytes_of_octet, -1).to(torch.uint8)  # (..., n/8, bits)
    return stream.flatten(-2)[..., :length].contiguous()


def _require_codes(codes: Tensor, bits: int) -> None:
    """StoreError where a code would run into its neighbours, or lose a fraction."""
    if codes.is_meta or not codes.numel() or codes.dtype == torch.bool:
        return
    low, high = (end.item() for end in codes.aminmax())
    if not (low >= 0 and high < 2**bits):  # also where one is not a number
        raise StoreError(
            f"codes from {low} to {high} do not fit {bits} bits; "
            f"give whole numbers from 0 to {2**bits - 1}"
        )
    if codes.is_floating_point() and not torch.equal(codes, codes.floor()):
        raise StoreError(f"codes of {codes.dtype} have fractions; round them first")


def unpack(stream: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of `pack`: n codes a row, (..., n) uint8.

    stream (uint8, (..., ceil(n*bits/8))); StoreError where its length or dtype is another.
    """
    if stream.dtype != torch.uint8 or stream.shape[-1] != packed_length(n, bits):
        raise StoreError(
            f"packed codes of shape {tuple(stream.shape)} {stream.dtype} do not hold {n} codes of "
            f"{bits} bits a row; expected uint8 with {packed_length(n, bits)} bytes a row"
        )
    if bits == 1:
        return _BITS.to(stream.device)[stream.int()].flatten(-2)[..., :n].contiguous()
    whole = -(-n // 8) * bits  # bytes of a row that ends with 8 whole codes
    padded = torch.nn.functional.pad(stream, (0, whole - stream.shape[-1]))
    octets = padded.unflatten(-1, (-1, bits))  # (..., n/8, bits)
    word = as_words(octets, 8)  # (..., n/8), 8 codes in each
    mask = (1 << bits) - 1
    eight_codes = [(word >> (i * bits)) & mask for i in range(8)]
    codes = torch.stack(eight_codes, -1).to(torch.uint8)  # (..., n/8, 8)
    return codes.flatten(-2)[..., :n].contiguous()


def as_words(numbers: Tensor, bits: int) -> Tensor:
    """Numbers (whole, (..., n)) of `bits` bits each -> (...) int64, the first one lowest."""
    word = numbers[..., 0].to(torch.int64, copy=True)
    for i in range(1, numbers.shape[-1]):
        word |= numbers[..., i].long() << (i * bits)
    return word


def bits_of(codes: Tensor, bits: int) -> list[Tensor]:
    """Each bit of codes (uint8, (...)), the most significant first: (...) uint8 in {0, 1}."""
    return [(codes >> place) & 1 for place in range(bits - 1, -1, -1)]


def exact_half(numbers: Tensor) -> Tensor:
    """Numbers (floating, any shape) as float16 where that is exact for all, else as float32."""
    half = numbers.half()
    return half if torch.equal(half.float(), numbers.float()) else numbers.float()


def as_stored(parameter: Tensor, beside: Tensor | float = 0.0) -> Tensor:
    """Round scales, shifts and the like (floating, any shape) to the dtype that is stored.

    It is float16, or float32 where float16 would distort one of them: a magnitude above `NOTHING`
    would be off by more than `DISTORTED` of itself, as those above 65504 and most below 2^-20 are;
    or all are below 2^-10 and one is below 2^-14, so that many would be subnormal. The choice is
    made per tensor, and shows in the bits, which are measured from the file.

    beside (floating, to be broadcast): what a number is added to, as a shift is to multiples of
    alpha. An error then counts relative to the larger of the two.
    """
    half = parameter.to(torch.float16)
    return half if _serves(half, parameter, beside) else parameter.to(torch.float32)


def off(stored: Tensor, parameter: Tensor, beside: Tensor | float = 0.0) -> Tensor:
    """bool (...): which of the numbers are distorted by being stored so; see `as_stored`."""
    size = parameter.abs().clamp_min(beside)
    close = (stored.to(parameter.dtype) - parameter).abs() <= DISTORTED * size
    return ~(close | (size <= NOTHING))  # also where it is not a number


def axes(name: str, part: Any, rank: int) -> tuple[int, ...]:
    """The sizes of a weight's part; StoreError unless it is a tensor of so many axes, not empty."""
    if not isinstance(part, Tensor):
        raise StoreError(f"part {name!r} of a weight is a {type(part).__name__}; give a tensor")
    shape = tuple(part.shape)
    if len(shape) != rank or 0 in shape:
        raise StoreError(
            f"part {name!r} of a weight is {part.dtype} {shape}; "
            f"expected {rank} {'axis' if rank == 1 else 'axes'}, none of them empty"
        )
    return shape


def expect(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    """StoreError unless a part of a weight has this shape and this dtype, or any floating one."""
    own = axes(name, tensor, len(shape))
    fits = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
    if own != shape or not fits:
        raise StoreError(
            f"part {name!r} of a weight is {tensor.dtype} {own}; "
            f"expected {dtype or 'floating'} {shape}"
        )


def group_count(in_features: int, group_size: int) -> int:
    """Number of groups along the inputs. StoreError where the size does not divide them."""
    whole = _is_whole(in_features) and _is_whole(group_size)
    if not whole or not 0 < group_size <= in_features or in_features % group_size:
        raise StoreError(f"group_size={group_size!r} does not divide {in_features!r} inputs")
    return in_features // group_size


def group_length(in_features: int, groups: int) -> int:
    """Inputs of each of so many groups. StoreError where they do not divide the inputs."""
    if groups < 1 or not in_features or in_features % groups:
        raise StoreError(f"{groups} groups do not divide {in_features} inputs")
    return in_features // groups


def _serves(half: Tensor, parameter: Tensor, beside: Tensor | float) -> bool:
    """Whether numbers may be stored in float16, as `half` has them."""
    if off(half, parameter, beside).any():
        return False
    magnitudes = parameter.abs()
    some = magnitudes[magnitudes > NOTHING]
    return not some.numel() or bool(some.amax() >= 2.0**-10 or some.amin() >= 2.0**-14)
