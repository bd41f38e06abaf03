"""Binary-coded, uniform and lattice weights on GPUs: which Triton kernel is launched when, and how.

float16 and bfloat16 take `_skinny` up to 16 rows of x, `_large` to 1024 and `_dense` above, or what
tuning has chosen on this GPU model; float32 takes `_skinny`, without matrix units. Triton is
imported with the first product. `qbench.kernels.gpu.triton_binary` says what each kernel rounds.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.kernels.contract import Description, Kernel, Prepared, Request, not_whole_words
from qbench.kernels.gpu.triton_configs import Config, choose
from qbench.kernels.gpu.triton_layout import LatticePlanes, Planes, derive
from qbench.kernels.layouts import Layouts

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SIGNS = 0x80008000 - 2**32  # the sign bits of two 16-bit numbers, as an int32


def product(
    x: Tensor,
    planes: Planes,
    bias: Tensor | None = None,
    out: torch.dtype | None = None,
    config: Config | None = None,
) -> Tensor:
    """x (m, in) float16, bfloat16 or float32, bias (out,) or None -> (m, out).

    out: dtype of the result, by default that of x. config: how to launch, by default what the table
    says. ConfigError where x does not fit, or has another dtype.
    """
    m, columns = x.shape
    n, k = planes.shape
    if columns != k or x.dtype not in DTYPES:
        raise ConfigError(
            f"x {tuple(x.shape)} {x.dtype} does not fit; expected (any, {k}), one of {DTYPES}"
        )
    if config is None:
        config = choose(m, planes, x.dtype)
    y = x.new_empty(m, n, dtype=out or x.dtype)
    if m == 0:
        return y
    if config.kind == "dense":
        if bias is not None:
            bias = bias.to(x.dtype)
        return torch.nn.functional.linear(x, dense(planes, x.dtype), bias).to(y.dtype)
    _launch(x.contiguous(), planes, bias, y, config)
    return y


def _launch(x: Tensor, planes: Planes, bias: Tensor | None, y: Tensor, config: Config) -> None:
    """Write the product of x (m, in) to y (m, out): one launch, or `split` parts and a sum."""
    from qbench.kernels.gpu import triton_binary

    m, n = y.shape
    split = config.split
    if split == 1:
        target = y
        first_bias = bias
    else:
        target = x.new_empty(split, m, n, dtype=torch.float32)
        first_bias = None  # `_reduce` adds it, once and not with every part
    # Blocks of outputs, blocks of rows of x (both rounded up), parts of the inputs.
    grid = (-(-n // config.block_n), -(-m // config.block_m), split)
    kernel = getattr(triton_binary, f"_{config.kind}")
    kernel[grid](
        x,
        *tensors(planes),
        first_bias,
        target,
        m,
        n,
        SIGNS,
        **meaning(planes, x.dtype),
        **launch(config, planes),
    )
    if split > 1:
        block = 1024
        triton_binary._reduce[(-(-m * n // block),)](
            target, bias, y, m * n, n, SPLIT=split, BLOCK=block
        )


def dense(planes: Planes, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) in float16 or bfloat16, rounded as `_large` rounds it."""
    from qbench.kernels.gpu.triton_binary import _dense

    n, k = planes.shape
    weight = planes.words.new_empty(n, k, dtype=dtype)
    grid = -(-n // 64), -(-k // 64)
    _dense[grid](
        *tensors(planes),
        weight,
        n,
        SIGNS,
        **meaning(planes, dtype),
        BN=64,
        BK=64,
        enable_fp_fusion=True,
    )
    return weight


def linear(x: Tensor, weight: Planes | LatticePlanes, bias: Tensor | None = None) -> Tensor:
    """x (..., in), bias (out,) or None -> (..., out) in the dtype of x."""
    rows = x.reshape(-1, weight.shape[1])
    if isinstance(weight, Planes):
        y = product(rows, weight, bias)
    else:
        inputs, offset = weight.inputs(rows)
        # float32 until the transform of the outputs is done.
        y = weight.outputs(product(inputs, weight.planes, out=torch.float32), offset)
        if bias is not None:
            y = y + bias
        y = y.to(x.dtype)
    return y.view(*x.shape[:-1], weight.shape[0])


def tensors(planes: Planes) -> tuple[Tensor, Tensor, Tensor | None]:
    """words, alpha, shift: the order of the kernels' arguments."""
    return planes.words, planes.alpha, planes.shift


def meaning(planes: Planes, dtype: torch.dtype) -> dict[str, Any]:
    """The compile-time arguments that say what the tensors mean, for x of this dtype."""
    import triton
    import triton.language as tl

    half = tl.float16
    if dtype == torch.bfloat16:
        half = tl.bfloat16
    # The interpreter's arithmetic in bfloat16 is wrong.
    interpreted = dtype == torch.bfloat16 and triton.knobs.runtime.interpret
    dot = half
    if dtype == torch.float32 or interpreted:
        dot = tl.float32
    return {
        "K": planes.shape[1],
        "GROUP": planes.group_size,
        "P": planes.bits,
        "UNIFORM": planes.uniform,
        "DOT": dot,
        "HALF": half,
    }


def launch(config: Config, planes: Planes) -> dict[str, Any]:
    """The compile-time arguments and options that say how a kernel runs.

    A step of `_skinny` has no more inputs than share a scale.
    """
    group = planes.group_size
    k = planes.shape[1]
    longest = group & -group  # the largest power of two that divides the group
    if group == k or config.kind == "large":
        longest = 1 << (k - 1).bit_length()  # k, rounded up to a power of two
    return {
        "BN": config.block_n,
        "BM": config.block_m,
        "BK": min(config.block_k, longest),
        "SPLIT": config.split,
        "num_warps": config.warps,
        "num_stages": config.stages,
        "enable_fp_fusion": True,
    }


@cache
def unavailable() -> str | None:
    """Why the kernels cannot be used in this process, or None."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    if find_spec("triton") is None:
        return "triton is not installed; install qbench's extra `gpu`"
    return None


_layouts = Layouts(derive)


def _run(x: Tensor, parts: list[Tensor], bias: Tensor | None, description: Description) -> Tensor:
    with torch.cuda.device_of(x):  # triton launches on the current device
        return linear(x, _layouts.of(parts, description), bias)


def _prepare(weight: WeightFormat) -> Prepared:
    layout = derive(weight)

    def run(x: Tensor) -> Tensor:
        return linear(x, layout)

    return Prepared(run, layout.nbytes)


def _refuses(request: Request) -> str | None:
    refused = not_whole_words(request.shape[1], request.group_size)
    if refused is not None:
        return refused
    if request.dtype == torch.float32 and request.rows > 64:
        return f"{request.rows} rows of float32 x; up to 64 are served"
    return None


def _describe() -> str:
    return "bit planes made into signs or weights in registers, in Triton"


KERNELS = (
    Kernel(
        "triton",
        _run,
        formats=("binary", "uniform", "lattice"),
        bits=(1, 8),
        devices=("cuda",),
        dtypes=DTYPES,
        automatic=True,
        error=1e-5,
        roundings=2.0,  # `_large` rounds every scale and partial sum of a weight
        available=unavailable,
        refuses=_refuses,
        describe=_describe,
        prepare=_prepare,
        label="",
    ),
)
