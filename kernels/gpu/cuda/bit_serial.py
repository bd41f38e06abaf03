"""Products with one to four rows of x: planes of bits times planes of bits (bit_serial.cu).

From three rows on, `byte_rows` is preferred; tuning and the fast mode use this one up to four.

x is first turned into planes of bits and a scale for each block of 128 inputs (bit_planes.cu),
which layers that read the same x share. The error of 16 planes is 2^-16 of a block's largest
number; that of 8 planes, a fast mode that has to be asked for, 2^-8.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from qbench.kernels.gpu.cuda import ring
from qbench.kernels.gpu.cuda.launch import Function, function
from qbench.kernels.gpu.cuda.layout import CudaPlanes
from qbench.kernels.gpu.cuda.ring import Config, fitting, useful

NAME = "bit_serial"
MAX_ROWS = 4
ARCHITECTURES = range(80, 100)  # whose matrix units multiply bits; newer ones emulate it
X_PLANES = 16

shared_bytes = ring.shared_bytes


@dataclass(frozen=True, eq=False)
class Prepared:
    """x (rows, in) as planes of bits.

    planes int32 (rows, chunks, 32 lanes, 2 blocks, words): 8 planes to a word, see bit_planes.cu.
    blocks float32 (rows, chunks, 2, 8): the scale of a block, and sums of its inputs.
    """

    planes: Tensor
    blocks: Tensor


def serves(planes: CudaPlanes, rows: int, architecture: int) -> str | None:
    """Why a product is not computed here on this architecture (80, 90, ..), or None."""
    if rows > MAX_ROWS:
        return f"{rows} rows of x; up to {MAX_ROWS} are served"
    if architecture not in ARCHITECTURES:
        return f"sm_{architecture} has no products of bits in its matrix units; sm_80 to sm_90 have"
    return None


def preparation(planes: CudaPlanes) -> Hashable:
    """What the prepared form of x depends on beside x."""
    return (NAME, X_PLANES)


def prepare(x: Tensor, planes: CudaPlanes, x_planes: int = X_PLANES) -> Prepared:
    """x (rows, in) contiguous float16 or bfloat16 -> its planes, launched on the current stream.

    x_planes: 16, or 8 for the fast mode.
    """
    rows, columns = x.shape
    chunks = planes.chunks
    prepared = Prepared(
        x.new_empty(rows, chunks, 32, 2, x_planes // 8, dtype=torch.int32),
        x.new_empty(rows, chunks, 2, 8, dtype=torch.float32),
    )
    kernel = _bit_planes(x.dtype == torch.bfloat16, x_planes, x.get_device())
    arguments = (x, prepared.planes, prepared.blocks, columns)
    kernel.launch((chunks, rows, 1), (256, 1, 1), arguments, dependent=True)
    return prepared


def launch(
    prepared: Prepared, planes: CudaPlanes, bias: Tensor | None, y: Tensor, config: Config
) -> None:
    """Write the product to y (rows, out), contiguous, in the dtype of x.

    bias float32 (out,) contiguous, or None. The weight has to be complete when `prepare` is called:
    it is read before the kernels that were launched earlier have ended.
    """
    rows = len(y)
    x_planes = 8 * prepared.planes.shape[-1]

    def product() -> Function:
        macros = {
            **planes.macros(y.dtype),
            "X_PLANES": x_planes,
            "ROWS": rows,
            **config.macros(),
        }
        return function("bit_serial.cu", "bit_serial", macros, y.get_device())

    key = (NAME, rows, y.dtype, x_planes, config)
    ring.launch(key, product, (prepared.planes, prepared.blocks), planes, bias, y, config)


def default(rows: int, planes: CudaPlanes, multiprocessors: int) -> Config:
    """More warps where there are few tiles; two tiles where more than one row of x is read."""
    many = planes.tiles > 2 * multiprocessors
    config = Config(8, 1, 2)
    if rows == 1 and not many:
        config = Config(16, 1, 2)
    elif rows > 1 and many:
        config = Config(8, 2, 2)
    return fitting(config, planes)


def configurations(rows: int, planes: CudaPlanes) -> Iterator[Config]:
    """What is worth timing.

    Few warps with many stages leave room on a multiprocessor for blocks of the next kernel, which
    have as many bytes on their way before the first kernel ends: where that takes 20 us, its start
    and its end are a tenth.
    """
    sizes = [(8, 1, 2), (8, 2, 2), (8, 2, 3), (4, 1, 2)]
    if rows <= 2:  # with more, products of bytes are faster
        sizes += [(8, 1, 3), (16, 1, 2), (16, 2, 2), (4, 1, 4), (4, 2, 2), (4, 2, 4), (8, 2, 4)]
    if rows == 1:
        sizes += [(4, 2, 3), (4, 2, 6)]
    yield from useful(sizes, planes)


@cache
def _bit_planes(bfloat16: bool, x_planes: int, device: int) -> Function:
    macros = {"BF16": int(bfloat16), "X_PLANES": x_planes}
    return function("bit_planes.cu", "bit_planes", macros, device)
