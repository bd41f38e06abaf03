"""The whole weight in half precision, at the GPU's write bandwidth: for cuBLAS at many rows."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from qbench.kernels.gpu.cuda import launch as launching
from qbench.kernels.gpu.cuda.layout import CudaPlanes

WARPS = 4  # of a block


def weight(planes: CudaPlanes, dtype: torch.dtype) -> Tensor:
    """The weight (out, in), contiguous, in float16 or bfloat16, rounded as in `half_rows`."""
    result = torch.empty(planes.shape, dtype=dtype, device=planes.words.device)
    function = _compiled(tuple(planes.macros(dtype).items()), planes.words.get_device())
    grid = (-(-planes.chunks // WARPS), planes.tiles, 1)
    arguments = (planes.words, planes.params, result, *planes.shape)
    function.launch(grid, (32 * WARPS, 1, 1), arguments, dependent=True)
    return result


@cache
def _compiled(formats: tuple[tuple[str, int], ...], device: int) -> launching.Function:
    names = dict(formats) | {"WARPS": WARPS}
    return launching.function("dequantize.cu", "dequantize", names, device)
