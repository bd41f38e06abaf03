"""The automatic choice over a grid of requests: by what kernels declare, whatever their order."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from qbench.kernels.contract import Request
from qbench.kernels.cpu import products as cpu
from qbench.kernels.registry import choose

FORMATS = ("binary", "rotated-binary", "uniform", "lattice", "dense")
BITS = (None, 1, 2, 3, 4, 8, 9, 16)
GROUPS = (None, 16, 32, 48, 64, 128, 256)
SHAPES = ((40, 64), (1, 32), (33, 96), (4096, 4096), (7, 48))
DEVICES = ("cpu", "cuda", "meta")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ROWS = (0, 1, 8, 64, 100_000)


def expected(request):
    """Tables of the CPU for binary and uniform weights that fit, else the plain product.

    Rotated weights have a kernel that turns x, where a kernel serves the binary coding.
    Without a GPU, no kernel for one is taken.
    """
    kept = request.format in ("binary", "uniform", "rotated-binary") and request.device == "cpu"
    fits = (request.group_size or 0) % 32 == 0 and request.shape[1] % 32 == 0
    widths = 1 <= (request.bits or 0) <= 8
    types = request.dtype in (torch.float32, torch.bfloat16)
    if not (kept and fits and widths and types):
        return "dequantized"
    return "rotated" if request.format == "rotated-binary" else "cpu-binary"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has kernels of its own")
def test_the_automatic_choice_over_all_requests():
    grid = product(FORMATS, BITS, GROUPS, SHAPES, DEVICES, DTYPES, ROWS)
    requests = [Request(*point) for point in grid]
    wrong = []
    for request in requests:
        name = expected(request) if cpu.unavailable() is None else "dequantized"
        if choose(request).name != name:
            wrong.append((request, choose(request).name))
    assert len(requests) == 84_000 and not wrong, wrong[:3]
