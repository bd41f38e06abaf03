"""Tunes all kernels of this folder for a weight on the present GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.kernels.gpu import triton_tune
from qbench.kernels.gpu.cuda import layout as cuda_layout
from qbench.kernels.gpu.cuda import products as cuda
from qbench.kernels.gpu.cuda import tune as cuda_tune
from qbench.kernels.gpu.triton_layout import Planes, derive


def tune(weight: WeightFormat, batches: Sequence[int], dtype: torch.dtype) -> list[Path]:
    """Find the fastest launches for this weight and x with so many rows; the files that keep them.

    weight: binary or uniform, on the GPU. A kernel that does not serve it is left out. ConfigError
    where there is no GPU, or Triton is not installed.
    """
    triton_tune.require_gpu()
    paths = []
    planes = derive(weight)
    if not isinstance(planes, Planes):
        raise ConfigError(
            f"weights of the format {weight.format!r} cannot be tuned; binary and uniform can"
        )
    group_size = weight.spec()["group_size"]
    if cuda.unavailable() is None and not cuda_layout.not_served(weight.shape[1], group_size):
        paths.append(cuda_tune.tune([cuda_layout.derive(weight)], batches, dtype))
    paths.append(triton_tune.tune([planes], batches, dtype))
    return paths
