"""Block-diagonal Hadamard transforms: orthonormal, symmetric, and hence their own inverse.

The matrix of order 2^k is Sylvester's, H_1 = [1], H_2n = [[H_n, H_n], [H_n, -H_n]] / sqrt(2). As
H_ab = H_a (x) H_b, a large block is transformed by one matrix product per factor of at most 128, in
n log n / log 128 time.
"""

from __future__ import annotations

from functools import cache
from math import prod

import torch
from torch import Tensor

FACTOR = 128  # order of the largest matrix that is multiplied with


def block_length(n: int) -> int:
    """Order of the blocks for n values.

    It is n where that is a power of two, else the largest power of two up to 128 that divides n.
    """
    power = n & -n  # the lowest bit that is set: the largest power of two that divides n
    return n if power == n else min(power, FACTOR)


def hadamard(x: Tensor, block: int, dim: int) -> Tensor:
    """Transform one axis of a tensor in blocks; a new tensor of the same shape, differentiable.

    x (float32 or float64, any shape). block: a power of two that divides the axis's length. dim:
    the axis, not negative.
    """
    shape = x.shape
    inner = prod(shape[dim + 1 :])  # values between two neighbours along the axis
    rest = block
    while rest > 1:
        factor = min(rest, FACTOR)
        rest //= factor
        matrix = sylvester(factor, x.dtype, x.device)
        stride = rest * inner  # values between two that this factor mixes
        if stride == 1:
            x = x.reshape(-1, factor) @ matrix
        else:
            x = matrix @ x.reshape(-1, factor, stride)
    return x.reshape(shape)


@cache
def sylvester(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sylvester's matrix of order n, a power of two: (n, n), orthonormal and symmetric."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        upper = torch.cat([matrix, matrix], 1)
        lower = torch.cat([matrix, -matrix], 1)
        matrix = torch.cat([upper, lower])
    return (matrix * n**-0.5).to(device, dtype)
