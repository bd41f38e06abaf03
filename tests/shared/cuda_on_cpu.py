"""Runs the CUDA sources of `kernels/gpu/cuda` on the CPU, thread by thread, with tensors of torch.

A source is compiled as C++ beside the headers of `tests/kernels/cuda_on_cpu`, which stand in for
those with PTX. So what is tested is the source that GPUs run, but for those headers.
"""

from __future__ import annotations

import ctypes
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from places import ROOT
from standard_headers import COMPILER, compile_library

SOURCES = ROOT / "kernels" / "gpu" / "cuda"
STAND_IN = ROOT / "tests" / "kernels" / "cuda_on_cpu"

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no g++")


@contextmanager
def functions_on_cpu(factory, modules, caches):
    """Inside, functions of the sources run on the CPU; each set of macros is compiled once.

    factory: pytest's, of folders. modules: which have the `function` of
    `qbench.kernels.gpu.cuda.launch` by this name. caches: of functions that were compiled.
    """
    folder = factory.getbasetemp() / "cuda_on_cpu"
    folder.mkdir(exist_ok=True)

    def function(source, name, macros, device):
        return FunctionOnCpu(source, name, macros, folder)

    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "function", function)
        for cached in caches:
            cached.cache_clear()
        yield
    for cached in caches:
        cached.cache_clear()


class FunctionOnCpu:
    """Has the `launch` of `qbench.kernels.gpu.cuda.launch.Function`."""

    def __init__(self, source: str, name: str, macros: dict[str, int], folder: Path) -> None:
        words = [name, *(f"{key}{value}" for key, value in sorted(macros.items()))]
        library = folder / ("-".join(words) + ".so")
        if not library.exists():
            _compile(source, name, macros, library)
        self._run = getattr(ctypes.CDLL(str(library)), f"run_{name}")

    def launch(self, grid, block, arguments, shared_bytes=0, dependent=False) -> None:
        """One grid; blocks have one dimension."""
        assert block[1:] == (1, 1) and isinstance(dependent, bool)
        values = [_value(argument) for argument in arguments]
        addresses = [ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values]
        self._run(
            (ctypes.c_uint * 3)(*grid),
            block[0],
            shared_bytes,
            (ctypes.c_void_p * len(values))(*addresses),
        )


def _compile(source: str, name: str, macros: dict[str, int], library: Path) -> None:
    folder = library.with_suffix("")
    shutil.copytree(SOURCES, folder, ignore=lambda _, names: [n for n in names if ".cu" not in n])
    for header in STAND_IN.glob("*.cuh"):
        shutil.copy(header, folder)
    entry = folder / "entry.cc"
    entry.write_text(
        f'#include "{source}"\n'
        f'extern "C" void run_{name}(const unsigned* grid, unsigned block, int shared_bytes,\n'
        f"                           void** arguments) {{\n"
        f"  launch({name}, grid, block, shared_bytes, arguments);\n"
        f"}}\n"
    )
    macro_options = [f"-D{key}={value}" for key, value in macros.items()]
    compile_library(entry, library, *macro_options)


def _value(argument):
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, torch.Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)
