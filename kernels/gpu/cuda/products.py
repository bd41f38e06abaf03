"""Binary-coded and uniform weights on NVIDIA GPUs: products by the kernels in CUDA C++.

`qbench.kernels.gpu.cuda.choice` says which kernel computes what. All of them sum in float32 in a
fixed order, without atomics, and round y once:

    bit_serial,  x rounded to 16-bit integers of its group's largest magnitude; nothing else:
    byte_rows    the error is less than 1.5 times that of rounding y
    half_rows,   the weight rounded to the dtype of x, as a dense layer in that dtype has it
    wide_rows,
    dequantize
    fast_bits    x rounded to 8-bit integers: the kernel `cuda-fast`, by name alone

Where x becomes integers, it has a range: 128 inputs of which none reaches 1e-30 count as zeros, and
one beyond about 1e28, which bfloat16 can be, makes its row NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.kernels.contract import Description, Kernel, Prepared, Request
from qbench.kernels.gpu.cuda import bit_serial, dequantize, fast_bits, toolchain
from qbench.kernels.gpu.cuda.choice import DEQUANTIZE, MODULES, Choice, choose, gpu_of
from qbench.kernels.gpu.cuda.layout import CudaPlanes, derive, joined, not_served
from qbench.kernels.layouts import Layouts
from qbench.kernels.sharing import shared

DTYPES = (torch.float16, torch.bfloat16)
LEAST_CAPABILITY = (8, 0)


class Packed:
    """A weight (out, in) on a GPU, and the kernel that was chosen for each number of rows."""

    def __init__(self, planes: CudaPlanes) -> None:
        self.planes = planes
        self._choices: dict[tuple[int, torch.dtype], Choice] = {}
        # the last bias that was not float32: (bias, what it was, in float32)
        self._bias: tuple[ref[Tensor], Any, Tensor] | None = None

    def choice(self, rows: int, dtype: torch.dtype) -> Choice:
        """The kernel for x of so many rows, and how it is launched."""
        known = self._choices.get((rows, dtype))
        if known is None:
            gpu = gpu_of(self.planes.words.get_device())
            known = self._choices[rows, dtype] = choose(rows, self.planes, dtype, gpu)
        return known

    def fast(self, rows: int) -> Choice:
        """The fast mode for x of so many rows, up to 4."""

        def make() -> Choice:
            count = gpu_of(self.planes.words.get_device()).multiprocessors
            return Choice(fast_bits.NAME, bit_serial.default(rows, self.planes, count))

        return self.planes.kept((fast_bits.NAME, rows), make)

    def in_float32(self, bias: Tensor) -> Tensor:
        """A bias (out,) as the kernels read it; one in half precision is converted once."""
        if bias.dtype == torch.float32:
            return bias.contiguous()
        version = 0 if bias.is_inference() else bias._version
        stamp = (ref(bias.untyped_storage()), bias.data_ptr(), version)
        known = self._bias
        if known is not None and known[0]() is bias and known[1] == stamp:
            return known[2]
        converted = bias.float().contiguous()
        if not _capturing(bias):  # else it holds nothing before the graph's first replay
            _complete(converted)
            self._bias = (ref(bias), stamp, converted)
        return converted


def product(
    x: Tensor,
    packed: Packed,
    bias: Tensor | None = None,
    choice: Choice | None = None,
    fast: bool = False,
) -> Tensor:
    """x (..., in) float16 or bfloat16, bias (out,) floating or None -> (..., out).

    choice: how, by default what the table says, or, for up to 4 rows, the fast mode. ConfigError
    where x does not fit.
    """
    planes = packed.planes
    out, columns = planes.shape
    if x.shape[-1:] != (columns,) or x.dtype not in DTYPES:
        raise ConfigError(
            f"x {tuple(x.shape)} {x.dtype} does not fit; "
            f"expected (..., {columns}) in float16 or bfloat16"
        )
    rows = x.numel() // columns
    y = x.new_empty(*x.shape[:-1], out)
    if y.numel() == 0:
        return y
    if choice is None:
        choice = packed.fast(rows) if fast else packed.choice(rows, x.dtype)
    flat = x.reshape(rows, columns).contiguous()
    if choice.kernel == DEQUANTIZE:
        dense = dequantize.weight(planes, x.dtype)
        constant = None if bias is None else bias.to(x.dtype)
        return torch.nn.functional.linear(flat, dense, constant).view(y.shape)
    if bias is not None:
        bias = packed.in_float32(bias)
    module = fast_bits if choice.kernel == fast_bits.NAME else MODULES[choice.kernel]
    inputs = flat
    if hasattr(module, "preparation"):
        inputs = shared(x, module.preparation(planes), lambda: module.prepare(flat, planes))
    module.launch(inputs, planes, bias, y.view(rows, out), choice.config)
    return y


def pack(weight: WeightFormat) -> Packed:
    """A weight on a GPU as the kernels read it.

    ConfigError where it is not served, or while a CUDA graph is captured: what is derived then
    would hold nothing before the graph's first replay.
    """
    if any(map(_capturing, weight.to_tensors().values())):
        raise ConfigError(
            "a weight's layout cannot be derived while a CUDA graph is captured; "
            "run the model once before"
        )
    planes = derive(weight)
    _complete(planes.words)
    return Packed(planes)


def packed_of(parts: list[Tensor], description: Description) -> Packed:
    """The weight that has these parts as the kernels read it, kept for all products with it.

    parts: on a GPU, in the description's order. ConfigError as of `pack`, StoreError where they do
    not fit the description.
    """
    return _layouts.of(parts, description)


def packed_together(weights: Sequence[Packed]) -> Packed | None:
    """Weights that read the same x as one, a copy; None where they differ too much."""
    planes = weights[0].planes if len(weights) == 1 else joined([each.planes for each in weights])
    if planes is None:
        return None
    _complete(planes.words)
    return Packed(planes)


def _capturing(tensor: Tensor) -> bool:
    """Whether what is computed with this tensor now becomes part of a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _complete(tensor: Tensor) -> None:
    """Wait until what is kept is there.

    Products on other streams read it, and kernels read weights before those that were launched
    earlier have ended.
    """
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()


_layouts = Layouts(pack)


def _run(
    x: Tensor,
    parts: list[Tensor],
    bias: Tensor | None,
    description: Description,
    fast: bool = False,
) -> Tensor:
    packed = packed_of(parts, description)
    if x.get_device() == torch.cuda.current_device():
        return product(x, packed, bias, fast=fast)
    with torch.cuda.device_of(x):
        return product(x, packed, bias, fast=fast)


def _prepare(weight: WeightFormat, fast: bool = False) -> Prepared:
    packed = pack(weight)

    def run(x: Tensor) -> Tensor:
        return product(x, packed, fast=fast)

    return Prepared(run, packed.planes.nbytes)


@cache
def unavailable() -> str | None:
    """Why the kernels cannot be used in this process, or None."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    if torch.version.hip is not None:
        return "they are for NVIDIA GPUs"
    capabilities = sorted(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))
    if capabilities[0] < LEAST_CAPABILITY:
        return f"a GPU here has compute capability {_dotted(capabilities[0])}, less than 8.0"
    reason = toolchain.unavailable()
    if reason is not None:
        return reason
    for major, minor in capabilities:
        if 10 * major + minor not in toolchain.compiled_for():
            return (
                f"NVRTC {toolchain.nvrtc_version()} does not compile for compute capability "
                f"{major}.{minor}; install a newer nvidia-cuda-nvrtc"
            )
    return None


@cache
def fast_unavailable() -> str | None:
    """Why the fast mode cannot be used in this process, or None."""
    reason = unavailable()
    if reason is not None:
        return reason
    for device in range(torch.cuda.device_count()):
        architecture = gpu_of(device).architecture
        if architecture not in bit_serial.ARCHITECTURES:
            return f"a GPU here, sm_{architecture}, only emulates products of bits"
    return None


def _refuses(request: Request) -> str | None:
    return not_served(request.shape[1], request.group_size or request.shape[1])


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _describe(note: str) -> str:
    if unavailable() is not None:
        return note
    architecture = toolchain.architecture(torch.cuda.get_device_capability())
    return f"{note} ({architecture}, NVRTC {toolchain.nvrtc_version()})"


def _kernel(name: str, **declared: Any) -> Kernel:
    """What both have in common, and what is declared of one."""
    return Kernel(
        name,
        formats=("binary", "uniform"),
        bits=(1, 8),
        devices=("cuda",),
        dtypes=DTYPES,
        refuses=_refuses,
        **declared,
    )


KERNELS = (
    _kernel(
        "cuda",
        run=_run,
        automatic=True,
        priority=20,  # before Triton's
        error=1e-5,
        # Rounding y alone makes 0.21 epsilons in norm. With the weight rounded, too, and the sum of
        # the two tables that it may come from, it is 0.37, and more for few outputs.
        roundings=0.6,
        available=unavailable,
        describe=partial(_describe, "products of bits on matrix units, or weights in registers"),
        prepare=_prepare,
        label="cuda",
    ),
    _kernel(
        "cuda-fast",
        run=partial(_run, fast=True),
        batch=(0, bit_serial.MAX_ROWS),
        # An integer is off by 0.29 in 127, which are the largest of 128 numbers, some 2.7 times
        # their mean square: 6e-3, and more where few blocks have larger ones.
        error=1.5e-2,
        available=fast_unavailable,
        describe=partial(_describe, "products of bits with x in 8-bit integers"),
        prepare=partial(_prepare, fast=True),
        timed=False,
    ),
)
