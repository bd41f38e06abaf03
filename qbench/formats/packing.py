"""Packing of small integer codes into bytes, exact both ways, and the dtype in which group parameters are stored.

Layout: a little-endian bit stream along the last axis. Code k of a row occupies bits k*b .. k*b + b
- 1 of the row, so 8 codes of b bits take exactly b bytes, and a row of n codes takes ceil(n*b/8)
bytes. One bit per code makes bitmaps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.errors import StoreError

_BITS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).to(
    torch.uint8
)  # the 8 codes in a byte of a bitmap


def packed_length(n: int, bits: int) -> int:
    """Bytes that n codes of `bits` bits take, 1 to 8; StoreError for any other."""
    if not 1 <= bits <= 8:
        raise StoreError(f"codes of bits={bits} cannot be packed; from 1 to 8 can")
    return -(-n * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """(..., n) integers in 0..2^bits-1, bits in 1..8 -> (..., ceil(n*bits/8)) uint8."""
    n = codes.shape[-1]
    octets = torch.nn.functional.pad(codes, (0, -n % 8)).unflatten(-1, (-1, 8))  # (..., n/8, 8)
    word = octets[
        ..., 0
    ].long()  # 8 codes of at most 8 bits fit one 64-bit word; the sign bit is a bit like any other
    for i in range(1, 8):
        word |= octets[..., i].long() << (i * bits)
    stream = torch.stack([(word >> (8 * j)) & 0xFF for j in range(bits)], -1).to(
        torch.uint8
    )  # (..., n/8, bits)
    return stream.flatten(-2)[..., : packed_length(n, bits)].contiguous()


def unpack(stream: Tensor, bits: int, n: int) -> Tensor:
    """(..., ceil(n*bits/8)) uint8 -> (..., n) uint8, the inverse of `pack`. StoreError where the length is wrong."""
    if stream.dtype != torch.uint8 or stream.shape[-1] != packed_length(n, bits):
        raise StoreError(
            f"packed codes of shape {tuple(stream.shape)} {stream.dtype} do not hold {n} codes of {bits} bits a row; "
            f"expected uint8 with {packed_length(n, bits)} bytes a row"
        )
    if bits == 1:
        return _BITS.to(stream.device)[stream.int()].flatten(-2)[..., :n].contiguous()
    whole = -(-n // 8) * bits
    octets = torch.nn.functional.pad(stream, (0, whole - stream.shape[-1])).unflatten(
        -1, (-1, bits)
    )
    word = octets[..., 0].long()
    for j in range(1, bits):
        word |= octets[..., j].long() << (8 * j)
    mask = (1 << bits) - 1
    codes = torch.stack([(word >> (i * bits)) & mask for i in range(8)], -1).to(
        torch.uint8
    )  # (..., n/8, 8)
    return codes.flatten(-2)[..., :n].contiguous()


def as_stored(parameter: Tensor) -> Tensor:
    """Round scales, shifts and the like to what a file holds: float16, or float32 where float16 would distort them.

    float16 is kept while the largest magnitude lies in 2^-10..65504, or no value but zero below
    2^-14: else many would fall among the subnormals. The choice is one per tensor and is counted,
    since the bits are measured from the file.
    """
    magnitudes = parameter.abs()
    largest = magnitudes.amax().item() if parameter.numel() else 0.0
    least = magnitudes[magnitudes > 0].amin().item() if largest > 0 else largest
    fits = largest == 0.0 or (largest <= 65504.0 and (largest >= 2.0**-10 or least >= 2.0**-14))
    return parameter.to(torch.float16 if fits else torch.float32)


def expect(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    """StoreError unless a part of a weight has this shape and this dtype, or any floating one."""
    fits = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
    if tuple(tensor.shape) != shape or not fits:
        raise StoreError(
            f"part {name!r} of a weight is {tensor.dtype} {tuple(tensor.shape)}; "
            f"expected {dtype or 'floating'} {tuple('any' if n < 0 else n for n in shape)}"
        )


def group_count(in_features: int, group_size: int) -> int:
    """Groups along the inputs. StoreError where the size does not divide them."""
    if not 0 < group_size <= in_features or in_features % group_size:
        raise StoreError(f"group_size={group_size} does not divide {in_features} inputs")
    return in_features // group_size
