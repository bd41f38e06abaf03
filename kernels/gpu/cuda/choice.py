"""Which CUDA kernel computes a product: what was measured on this GPU model, else what is likely.

An entry of `tuned/<name of the GPU>.json` (`qbench.kernels.tuned`) has the kernel's name and the
fields of its `Config`. Without one, the rows of x decide:

    bit_serial   one or two, on GPUs that multiply bits: sm_80 .. sm_90; newer ones emulate it
    byte_rows    few, by products of bytes
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
from qbench.kernels.gpu.cuda import bit_serial, byte_rows, half_rows, wide_rows
from qbench.kernels.gpu.cuda.layout import SMALL_GROUPS, CudaPlanes
from qbench.kernels.tuned import TunedFiles

DEQUANTIZE = "dequantize"
# (architecture, multiprocessors) -> a measured GPU that has the same processor: H100 and H200
# differ in their memory
SAME_PROCESSOR = {(90, 132): "NVIDIA H200"}
MODULES: dict[str, ModuleType] = {
    module.NAME: module for module in (bit_serial, byte_rows, half_rows, wide_rows)
}
# (rows of x at most, kernels by preference); the first that serves is taken
ORDER: tuple[tuple[int, tuple[str, ...]], ...] = (
    (2, ("bit_serial", "byte_rows")),
    (8, ("byte_rows",)),
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
    """The kernel for x of so many rows, at least one, and how it is launched.

    A product that was not measured uses the choice measured for binary weights in bfloat16 with
    groups of 128, of the same bits and shape; not where its groups have 32 or 64 weights, which
    have more parameters. What was measured with parameters in half precision may not fit the GPU
    with larger ones.
    """
    measured = TUNED.of(gpu.name)
    alike = SAME_PROCESSOR.get((gpu.architecture, gpu.multiprocessors))
    if not measured and alike is not None:
        measured = TUNED.of(alike)
    names = [tuned.key_of(rows, planes, dtype)]
    if planes.group_size not in SMALL_GROUPS:
        names.append(tuned.key(rows, planes.shape, "binary", planes.bits, 128, torch.bfloat16))
    for name in names:
        choice = measured.get(name)
        if choice is None or not fits(choice, planes, gpu):
            continue
        if refusal(choice.kernel, rows, planes, gpu) is None:
            return choice
    return default(rows, planes, gpu)


def default(rows: int, planes: CudaPlanes, gpu: Gpu) -> Choice:
    """By the rows, where nothing was measured."""
    names = next((names for limit, names in ORDER if rows <= limit), ())
    if "wide_rows" in names and planes.tiles <= 2 * gpu.multiprocessors and rows <= 64:
        names = ("half_rows",)  # outputs by the 64 would leave processors idle: 13.4 for 17.5 us
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
    return MODULES[name].serves(planes, rows, gpu.architecture)


def fits(chosen: Choice, planes: CudaPlanes, gpu: Gpu) -> bool:
    """Whether a thread block of this GPU has the shared memory that the launch asks for."""
    if chosen.kernel == DEQUANTIZE:
        return True
    if chosen.kernel == wide_rows.NAME and not wide_rows.has_room(planes, chosen.config):
        return False
    needed: int = MODULES[chosen.kernel].shared_bytes(planes, chosen.config)
    return needed <= half_rows.block_bytes(gpu.architecture)


def _parsed(fields: Mapping[str, Any]) -> Choice:
    values = dict(fields)
    name = values.pop("kernel")
    if name == DEQUANTIZE:
        return Choice(name)
    return Choice(name, MODULES[name].Config(**values))


TUNED = TunedFiles(Path(__file__).resolve().parent / "tuned", _parsed)
