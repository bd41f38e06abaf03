"""Which CUDA kernel computes a product: what was measured on this GPU model, else what is likely.

An entry of `tuned/<name of the GPU>.json` (`qbench.kernels.tuned`) has the kernel's name and the
fields of its `Config`. Without one, the rows of x decide:

    bit_serial   few rows, on GPUs that multiply bits: sm_80 .. sm_90; newer ones emulate it
    half_rows    some, the weight made into half precision in registers
    wide_rows    many, on sm_90 alone: its asynchronous matrix units
    dequantize   the whole weight is written out in half precision, and cuBLAS multiplies
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from qbench.kernels import tuned
from qbench.kernels.gpu.cuda import bit_serial, half_rows, wide_rows
from qbench.kernels.gpu.cuda.layout import CudaPlanes

TUNED = Path(__file__).resolve().parent / "tuned"
DEQUANTIZE = "dequantize"
MODULES: dict[str, ModuleType] = {
    module.NAME: module for module in (bit_serial, half_rows, wide_rows)
}
BIT_ARCHITECTURES = range(80, 100)  # whose matrix units multiply bits
# (rows of x at most, kernels by preference); the first that serves is taken
ORDER: tuple[tuple[int, tuple[str, ...]], ...] = (
    (4, ("bit_serial", "half_rows")),
    (32, ("half_rows",)),
    (64, ("wide_rows", "half_rows")),
    (1024, ("wide_rows",)),
)


@dataclass(frozen=True)
class Gpu:
    """What the choice depends on. architecture: such as 90. name: as torch.cuda gives it."""

    name: str
    architecture: int
    multiprocessors: int


@dataclass(frozen=True)
class Choice:
    """A kernel by its name, and its `Config`; None for `dequantize`, which has none."""

    kernel: str
    config: Any = None

    def fields(self) -> dict[str, Any]:
        """As a tuned file keeps it."""
        return {"kernel": self.kernel} | ({} if self.config is None else asdict(self.config))


@cache
def gpu_of(device: int) -> Gpu:
    """The facts about the GPU of this index."""
    facts = torch.cuda.get_device_properties(device)
    return Gpu(facts.name, 10 * facts.major + facts.minor, facts.multi_processor_count)


def choose(rows: int, planes: CudaPlanes, dtype: torch.dtype, gpu: Gpu) -> Choice:
    """The kernel for x of so many rows, at least one, and how it is launched."""
    measured = _tuned(gpu.name).get(key(rows, planes, dtype))
    if measured is not None and refusal(measured.kernel, rows, planes, gpu) is None:
        return measured
    return default(rows, planes, gpu)


def default(rows: int, planes: CudaPlanes, gpu: Gpu) -> Choice:
    """By the rows, where nothing was measured."""
    names = next((names for limit, names in ORDER if rows <= limit), ())
    for name in names:
        if refusal(name, rows, planes, gpu) is None:
            return Choice(name, MODULES[name].default(rows, planes, gpu.multiprocessors))
    return Choice(DEQUANTIZE)


def candidates(rows: int, planes: CudaPlanes, gpu: Gpu) -> list[Choice]:
    """Everything worth timing for x of so many rows."""
    choices = [
        Choice(name, config)
        for name, module in MODULES.items()
        if refusal(name, rows, planes, gpu) is None
        for config in module.configurations(rows, planes)
    ]
    return choices if rows < 32 else [*choices, Choice(DEQUANTIZE)]


def refusal(name: str, rows: int, planes: CudaPlanes, gpu: Gpu) -> str | None:
    """Why a kernel does not compute this product, or None."""
    if name == DEQUANTIZE:
        return None
    if name == bit_serial.NAME and gpu.architecture not in BIT_ARCHITECTURES:
        return f"sm_{gpu.architecture} only emulates products of bits"
    return MODULES[name].serves(planes, rows, gpu.architecture)


def key(rows: int, planes: CudaPlanes, dtype: torch.dtype) -> str:
    """The name of a product in a tuned file."""
    kind = "uniform" if planes.uniform else "binary"
    return tuned.key(rows, planes.shape, kind, planes.bits, planes.group_size, dtype)


def tuned_file(gpu: str) -> Path:
    """Where the measured choices of a GPU model are kept."""
    return tuned.tuned_file(TUNED, gpu)


@cache
def _tuned(gpu: str) -> dict[str, Choice]:
    return tuned.read(tuned_file(gpu), _parsed)


def _parsed(fields: Mapping[str, Any]) -> Choice:
    values = dict(fields)
    name = values.pop("kernel")
    if name == DEQUANTIZE:
        return Choice(name)
    return Choice(name, MODULES[name].Config(**values))
