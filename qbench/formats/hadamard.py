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

FACTOR = 128


def block_length(n: int) -> int:
    """Order of the blocks for n values: n where it is a power of two, else the largest one up to 128 that divides n."""
    power = n & -n
    return n if power == n else min(power, FACTOR)


def hadamard(x: Tensor, block: int, dim: int) -> Tensor:
    """Transform axis `dim` (not negative) of x in blocks of `block`, a power of two that divides its length.

    float32 or float64, new tensor of the same shape, differentiable.
    """
    shape, inner = x.shape, prod(x.shape[dim + 1 :])
    rest = block
    while rest > 1:
        factor = min(rest, FACTOR)
        rest //= factor
        matrix = sylvester(factor, x.dtype, x.device)
        stride = rest * inner  # values between two that this factor mixes
        x = (
            x.reshape(-1, factor) @ matrix
            if stride == 1
            else matrix @ x.reshape(-1, factor, stride)
        )
    return x.reshape(shape)


@cache
def sylvester(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, n), n a power of two, orthonormal."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (matrix * n**-0.5).to(device, dtype)
