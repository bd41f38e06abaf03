"""Runs CUDA sources that are written for Hopper on the CPU, with tensors of torch.

A source is compiled as C++ beside `tests/kernels/hopper_on_cpu/wgmma.cuh`, which stands in for the
header with all PTX. So what is tested is the source that GPUs run, but for that header.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
from pathlib import Path

import pytest
import torch

from places import ROOT
from standard_headers import COMPILER, compile_library

SOURCES = ROOT / "kernels" / "gpu" / "cuda"
STAND_IN = ROOT / "tests" / "kernels" / "hopper_on_cpu"
ENTRY = """
#include "wide_rows.cu"
extern "C" void run_prepare(const u32* grid, u32 block, int bytes, void** arguments) {
  launch(prepare, grid, block, 1, bytes, arguments);
}
extern "C" void run_multiply_wide(const u32* grid, u32 block, int bytes, void** arguments) {
  launch(multiply_wide, grid, block, CLUSTER, bytes, arguments);
}
"""

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no g++")


class FunctionOnCpu:
    """Has the `launch` of `qbench.kernels.gpu.cuda.launch.Function`."""

    def __init__(self, library: Path, name: str) -> None:
        self._library = str(library)
        self._name = f"run_{name}"

    def launch(self, grid, block, arguments, shared_bytes=0, dependent=False) -> None:
        """One grid of one-dimensional blocks, in a process of its own, since failures end it."""
        assert block[1:] == (1, 1) and grid[2] == 1 and isinstance(dependent, bool)
        values = [_value(argument) for argument in arguments]
        addresses = [ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values]
        run = getattr(ctypes.CDLL(self._library), self._name)
        run((ctypes.c_uint * 3)(*grid), block[0], shared_bytes, (ctypes.c_void_p * 20)(*addresses))


def compiled(folder: Path, source: str, name: str, macros: dict[str, int], device: int):
    """What `qbench.kernels.gpu.cuda.launch.function` gives, for the CPU."""
    assert source == "wide_rows.cu" and device == -1
    library = _library(folder, tuple(sorted(macros.items())))
    return FunctionOnCpu(library, name)


@functools.cache
def _library(folder: Path, macros: tuple[tuple[str, int], ...]) -> Path:
    build = Path(folder) / str(len(list(folder.iterdir())))
    build.mkdir()
    for path in (*SOURCES.glob("wide_*.cu*"), SOURCES / "weights.cuh", STAND_IN / "wgmma.cuh"):
        shutil.copy(path, build)
    shutil.copy(ROOT / "tests" / "kernels" / "cuda_on_cpu" / "instructions.cuh", build)
    (build / "conversions.cuh").write_text('#include "wgmma.cuh"\n')
    (build / "entry.cc").write_text(ENTRY)
    library = folder / f"{build.name}.so"
    macro_options = [f"-D{key}={value}" for key, value in macros]
    compile_library(build / "entry.cc", library, "-Wno-dangling-pointer", *macro_options)
    return library


def _value(argument):
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, torch.Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)
