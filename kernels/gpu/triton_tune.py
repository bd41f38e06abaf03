"""Times launches of the Triton kernels on the present GPU, and keeps the best by shape.

`qbench.kernels.tuned` describes the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from qbench.errors import ConfigError
from qbench.kernels import tuned
from qbench.kernels.gpu import products as gpu
from qbench.kernels.gpu import triton_configs
from qbench.kernels.gpu.triton_configs import Config
from qbench.kernels.gpu.triton_layout import Planes

AGREEMENT = 0.02  # how far a launch's product may be from the default's, relative, in norm


def tune(
    weights: Iterable[Planes], batches: Iterable[int], dtype: torch.dtype, path: Path | None = None
) -> Path:
    """Time all candidates for each weight and batch, and write the file of this GPU, or `path`.

    Entries of other shapes stay. A candidate counts only if its products agree with those of the
    default. Returns the file. ConfigError where there is no GPU.
    """
    require_gpu()
    import triton

    name = torch.cuda.get_device_name()
    path = path or triton_configs.TUNED.path(name)
    for weight, m in product(list(weights), batches):
        x = torch.randn(m, weight.shape[1], device=weight.words.device, dtype=dtype)
        best = {tuned.key_of(m, weight, dtype): asdict(_best(x, weight))}
        tuned.write(path, {"gpu": name, "triton": triton.__version__}, best)
    triton_configs.TUNED.forget()
    return path


def require_gpu() -> None:
    """ConfigError where there is none, or no triton."""
    reason = gpu.unavailable()
    if reason is not None:
        raise ConfigError(f"nothing can be tuned: {reason}; tune on the machine that will serve")


def candidates(m: int) -> Iterator[Config]:
    """Launches worth timing for m rows of x in half precision."""
    if m <= 32:
        rows = 8 if m <= 8 else 16
        for n, k, split, stages in product((64, 128), (64, 128), (1, 4, 8, 16), (2, 4)):
            yield Config("skinny", n, rows, k, split, 4, stages)
    for n, rows, split, stages in product((64, 128), (16, 32, 64, 128), (1, 4), (2, 3)):
        if m > 4 and rows < 2 * m:
            yield Config("large", n, rows, 64, split, 8 if rows == 128 else 4, stages)
    if m >= 256:
        yield triton_configs.DENSE


def _best(x: Tensor, weight: Planes) -> Config:
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    default = triton_configs.default(len(x), *weight.shape, x.dtype)
    expected = gpu.product(x, weight, out=torch.float32, config=default)

    def milliseconds(config: Config) -> float:
        return do_bench(lambda: gpu.product(x, weight, config=config), return_mode="median")

    times = {default: milliseconds(default)}
    for config in candidates(len(x)):
        try:
            y = gpu.product(x, weight, out=torch.float32, config=config)
        except OutOfResources:  # more shared memory or registers than the GPU has
            continue
        if (y - expected).norm() <= AGREEMENT * expected.norm():
            times[config] = milliseconds(config)
    return min(times, key=lambda config: times[config])
