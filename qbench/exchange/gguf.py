"""GGUF blocks: 32 consecutive inputs, a float16 scale d, integers q without zero point; w = d * q.

    Q4_0  18 bytes  d; 16 bytes: q + 8, byte j holds q[j] in its low half and q[j + 16] in its high
    Q5_0  22 bytes  d; 4 bytes: bit j is bit 4 of q[j] + 16; 16 bytes of the low bits as in Q4_0
    Q8_0  34 bytes  d; 32 bytes: q

Source: llama.cpp, gguf-py/gguf/quants.py, `dequantize_blocks` of each type. A uniform weight is
scale * (code - zero), so with integer zero points its blocks hold q = code - zero and d = scale,
and mean the same float32 numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from qbench.errors import ConfigError
from qbench.exchange.exact import ADVICE, half_scale, integer_zero
from qbench.formats import Uniform
from qbench.formats.packing import pack

BLOCK = 32
# The integers a type holds, smallest type first. Programs that quantize to Q8_0 leave -128 out;
# readers take it.
RANGES = {
    GGMLQuantizationType.Q4_0: (-8, 7),
    GGMLQuantizationType.Q5_0: (-16, 15),
    GGMLQuantizationType.Q8_0: (-128, 127),
}


def blocks(weight: Uniform) -> tuple[Any, NDArray[np.uint8]]:
    """(type, bytes): the smallest type of GGUF that holds a weight (out, in) exactly, and its data.

    type: a GGMLQuantizationType. bytes (out, in/32 * bytes of a block), uint8. ConfigError where no
    type does: groups that are no multiple of 32 inputs, scales that are not float16, zero points
    that are not integers, and code - zero outside -128..127.
    """
    if weight.group_size % BLOCK:
        raise ConfigError(
            f"group_size={weight.group_size} is not a multiple of {BLOCK}, the block of GGUF's "
            f"types, so a block would mix scales; {ADVICE}"
        )
    codes, _, _ = weight.unpacked()  # (out, groups, group_size)
    scale = half_scale(weight, "GGUF")  # (out, groups)
    zero = integer_zero(weight, "GGUF")  # (out, groups)
    integers = codes.int() - zero[..., None]
    integers = integers.flatten(1).unflatten(1, (-1, BLOCK))  # (out, blocks, 32)
    block_scale = scale.repeat_interleave(weight.group_size // BLOCK, 1)  # (out, blocks)
    scale_bytes = block_scale.contiguous().view(torch.uint8).unflatten(1, (-1, 2))
    kind = _smallest_type(integers)
    parts = [scale_bytes, *_packed(integers, kind)]  # (out, blocks, bytes) each
    return kind, torch.cat(parts, -1).flatten(1).cpu().numpy()


def _smallest_type(integers: Tensor) -> Any:
    low = integers.min().item()
    high = integers.max().item()
    for kind, (least, most) in RANGES.items():
        if least <= low and high <= most:
            return kind
    raise ConfigError(
        f"code - zero point reaches {low}..{high}, and the widest of GGUF's types with one scale, "
        f"Q8_0, holds -128..127; quantize symmetrically or with fewer bits, or {ADVICE}"
    )


def _packed(integers: Tensor, kind: Any) -> list[Tensor]:
    """(out, blocks, 32) integers -> what follows the scale, uint8 (out, blocks, bytes) each."""
    if kind == GGMLQuantizationType.Q8_0:
        return [integers.to(torch.int8).view(torch.uint8)]
    least, _ = RANGES[kind]
    shifted = (integers - least).to(torch.uint8)
    first, second = (shifted & 15).chunk(2, -1)  # (out, blocks, 16) each
    nibbles = first | (second << 4)
    if kind == GGMLQuantizationType.Q4_0:
        return [nibbles]
    fifth_bits = pack(shifted >> 4, 1)
    return [fifth_bits, nibbles]
