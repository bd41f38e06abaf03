"""Products with up to 16 rows of x: planes of bits as bytes, times pairs of bytes (byte_rows.cu).

x is first turned into 16-bit integers, as high and low bytes, and a scale for each block of 128
inputs (bytes.cu), which layers that read the same x share. The error is 2^-15 of a block's largest
number.
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

NAME = "byte_rows"
MAX_ROWS = 16

shared_bytes = ring.shared_bytes


@dataclass(frozen=True, eq=False)
class Prepared:
    """x (rows, in) as bytes.

    bytes int32 (ceil(rows/4), chunks, 2 blocks, 2, 32 lanes, 4): see bytes.cu. blocks float32 (rows
    rounded up to 4, chunks, 2, 8): the scale of a block, and sums of its inputs.
    """

    bytes: Tensor
    blocks: Tensor


def serves(planes: CudaPlanes, rows: int, architecture: int) -> str | None:
    """Why a product is not computed here on this architecture (80, 90, ..), or None."""
    if rows > MAX_ROWS:
        return f"{rows} rows of x; up to {MAX_ROWS} are served"
    return None


def preparation(planes: CudaPlanes) -> Hashable:
    """What the prepared form of x depends on beside x."""
    return (NAME,)


def prepare(x: Tensor, planes: CudaPlanes) -> Prepared:
    """x (rows, in) contiguous float16 or bfloat16 -> its bytes, launched on the current stream."""
    rows, columns = x.shape
    fours = -(-rows // 4)
    prepared = Prepared(
        x.new_empty(fours, planes.chunks, 2, 2, 32, 4, dtype=torch.int32),
        x.new_empty(4 * fours, planes.chunks, 2, 8, dtype=torch.float32),
    )
    kernel = _bytes(x.dtype == torch.bfloat16, x.get_device())
    arguments = (x, prepared.bytes, prepared.blocks, columns, rows)
    kernel.launch((planes.chunks, fours, 1), (256, 1, 1), arguments, dependent=True)
    return prepared


def launch(
    prepared: Prepared, planes: CudaPlanes, bias: Tensor | None, y: Tensor, config: Config
) -> None:
    """Write the product to y (rows, out), contiguous, in the dtype of x.

    bias float32 (out,) contiguous, or None. The weight has to be complete when `prepare` is called:
    it is read before the kernels that were launched earlier have ended.
    """
    fours = len(prepared.bytes)

    def product() -> Function:
        macros = {**planes.macros(y.dtype), "FOURS": fours, **config.macros()}
        return function("byte_rows.cu", "byte_rows", macros, y.get_device())

    key = (NAME, fours, y.dtype, config)
    parts = (prepared.bytes, prepared.blocks)
    ring.launch(key, product, parts, planes, bias, y, config, more=(len(y),))


def default(rows: int, planes: CudaPlanes, multiprocessors: int) -> Config:
    """Two tiles where there are enough of them, since x is then read half as often."""
    many = planes.tiles > 2 * multiprocessors
    if many and planes.chunks > 16:
        config = Config(8, 2, 2)
    elif many:
        config = Config(4, 1, 3)
    else:
        config = Config(8, 1, 2)
    return fitting(config, planes)


def configurations(rows: int, planes: CudaPlanes) -> Iterator[Config]:
    """What is worth timing."""
    sizes = [(8, 2, 2), (8, 1, 2), (4, 1, 3), (4, 1, 2)]
    if rows == 1:  # as a rule others are faster
        sizes += [(8, 1, 3), (8, 2, 3)]
    elif rows <= 4:
        sizes += [(8, 1, 3), (4, 2, 3), (4, 2, 2), (16, 1, 2), (8, 2, 3)]
    yield from useful(sizes, planes)


@cache
def _bytes(bfloat16: bool, device: int) -> Function:
    return function("bytes.cu", "bytes", {"BF16": int(bfloat16)}, device)
