"""What other programs ask of a uniform weight, by value: float16 scales, integer zero points.

And the 32-bit words in which they store its bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.errors import ConfigError
from qbench.formats import Uniform
from qbench.formats.packing import unpack

ADVICE = "keep this model in qbench's own format, which holds it, or export the dequantized weights"


def half_scale(weight: Uniform, target: str) -> Tensor:
    """float16 (out, groups), equal to the scale.

    target: the program that asks, for the message. ConfigError where float16 would change a scale.
    """
    half = weight.scale.half()
    changed = half.float() != weight.scale.float()
    if changed.any():
        row, group = changed.nonzero()[0].tolist()
        raise ConfigError(
            f"the scale {weight.scale[row, group].item():.9g} (output {row}, group {group}) "
            f"is not a float16 number, and {target} stores scales in float16; {ADVICE}"
        )
    return half


def integer_zero(weight: Uniform, target: str) -> Tensor:
    """int32 (out, groups), equal to the zero point, the midpoint of a symmetric weight's grid.

    target: the program that asks, for the message. ConfigError where one is none of 32 bits.
    """
    zero = weight.zero_point
    if zero is None:
        middle = 2 ** (weight.bits - 1)
        shape = weight.scale.shape
        return torch.full(shape, middle, dtype=torch.int32, device=weight.scale.device)
    if zero.dtype == torch.uint8:
        return unpack(zero, weight.bits, weight.scale.shape[1]).int()
    other = (zero != zero.round()) | (zero.abs() >= 2**31)
    if other.any():
        row, group = other.nonzero()[0].tolist()
        raise ConfigError(
            f"the zero point {zero[row, group].item():.9g} (output {row}, group {group}) "
            f"is not an integer of 32 bits, as zero points of {target} are; {ADVICE}"
        )
    return zero.int()


def to_words(stream: Tensor) -> Tensor:
    """(rows, 4*n) uint8 -> (rows, n) int32, four bytes a word, the first one lowest; a copy."""
    # a stream that lies in a file's buffer may start at an address that is no multiple of 4
    return stream.clone(memory_format=torch.contiguous_format).view(torch.int32)


def to_stream(words: Tensor) -> Tensor:
    """(rows, n) int32 -> (rows, 4*n) uint8, the inverse of `to_words`; a copy."""
    return words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
