"""The fast mode of `bit_serial`, which is taken by name alone: x as 8 planes of bits, not as 16."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from qbench.kernels.gpu.cuda import bit_serial
from qbench.kernels.gpu.cuda.bit_serial import Prepared, launch
from qbench.kernels.gpu.cuda.layout import CudaPlanes

__all__ = ["launch", "preparation", "prepare"]

NAME = "fast_bits"
X_PLANES = 8


def preparation(planes: CudaPlanes) -> Hashable:
    """What the prepared form of x depends on beside x."""
    return (NAME,)


def prepare(x: Tensor, planes: CudaPlanes) -> Prepared:
    """x (rows, in) contiguous float16 or bfloat16 -> its planes, launched on the current stream."""
    return bit_serial.prepare(x, planes, X_PLANES)
