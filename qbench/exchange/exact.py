"""What other programs ask of a uniform weight: float16 scales, integer zero points (both by value), 32-bit words."""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.errors import ConfigError
from qbench.formats import Uniform
from qbench.formats.packing import unpack

ADVICE = "keep this model in qbench's own format, which holds it, or export the dequantized weights"


def half_scale(weight: Uniform, target: str) -> Tensor:
    """float16 (out, groups), equal to the scale. ConfigError where float16 would change it; `target` says who asks."""
    half = weight.scale.half()
    changed = half.float() != weight.scale.float()
    if changed.any():
        row, group = changed.nonzero()[0].tolist()
        raise ConfigError(
            f"the scale {weight.scale[row, group].item():.9g} (output {row}, group {group}) is not a float16 number, "
            f"and {target} stores scales in float16; {ADVICE}"
        )
    return half


def integer_zero(weight: Uniform, target: str) -> Tensor:
    """int32 (out, groups), equal to the zero point. ConfigError where it is not an integer; `target` says who asks."""
    if weight.zero_point is None:
        return torch.full(
            weight.scale.shape,
            2 ** (weight.bits - 1),
            dtype=torch.int32,
            device=weight.scale.device,
        )
    if weight.zero_point.dtype == torch.uint8:
        return unpack(weight.zero_point, weight.bits, weight.scale.shape[1]).int()
    fractional = weight.zero_point != weight.zero_point.round()
    if fractional.any():
        row, group = fractional.nonzero()[0].tolist()
        raise ConfigError(
            f"the zero point {weight.zero_point[row, group].item():.9g} (output {row}, group {group}) is not an "
            f"integer, and {target} stores integer zero points; {ADVICE}"
        )
    return weight.zero_point.int()


def to_words(stream: Tensor) -> Tensor:
    """(rows, 4*n) uint8 -> (rows, n) int32, four bytes a word, the first one lowest. Always a copy."""
    # a stream that lies in a file's buffer may start at an address that is no multiple of 4
    return stream.clone(memory_format=torch.contiguous_format).view(torch.int32)


def to_stream(words: Tensor) -> Tensor:
    """(rows, n) int32 -> (rows, 4*n) uint8, the inverse of `to_words`. Always a copy."""
    return words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
