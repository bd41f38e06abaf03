"""What the layout of the CUDA kernels means, from its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.kernels.gpu.cuda.layout import CudaPlanes


def dense(planes: CudaPlanes) -> Tensor:
    """The weight (out, in) in float64."""
    out, columns = planes.shape
    codes = _bits(planes.words)  # (P, 16 tiles, 256 chunks)
    # (16 tiles, groups, A)
    params = planes.params.double().permute(0, 4, 2, 1, 3).flatten(0, 2)
    size = planes.group_size or codes.shape[2]
    group = torch.arange(columns, device=codes.device) // size
    each = params[:, group]  # (16 tiles, in, A)
    codes = codes[:, :, :columns].double()
    if planes.uniform:
        places = 2.0 ** torch.arange(planes.bits, device=codes.device)
        code = (codes * places[:, None, None]).sum(0)
        return (each[..., 0] * (code - each[..., 1]))[:out]
    weight = (each[..., : planes.bits].permute(2, 0, 1) * (2 * codes - 1)).sum(0)
    if planes.shift:
        weight = weight + each[..., planes.bits]
    return weight[:out]


def _bits(words: Tensor) -> Tensor:
    """Of words (tiles, chunks, P, 32, 4) each bit: (P, 16 tiles, 256 chunks) uint8 in {0, 1}."""
    at = torch.arange(32, device=words.device)
    bits = ((words[..., None] >> at) & 1).to(torch.uint8)
    # (tiles, chunks, P, g, t, half, h, j, s)
    split = bits.unflatten(-1, (4, 8)).unflatten(4, (2, 2)).unflatten(3, (8, 4))
    # (P, tiles, h, g, chunks, half, s, t, j)
    return split.permute(2, 0, 6, 3, 1, 5, 8, 4, 7).flatten(4).flatten(1, 3)
