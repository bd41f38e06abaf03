"""Compiled functions of a GPU, launched on torch's current stream through the driver.

A launch costs the processor about as much as one operator of torch: arguments are packed into one
buffer of the thread, and the driver copies them. Nothing is allocated on the GPU and nothing waits,
so that CUDA graphs capture launches. The first use of a function compiles and loads it.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qbench.errors import ConfigError
from qbench.kernels.gpu.cuda import toolchain

Size = tuple[int, int, int]
Argument = Tensor | int | float | None

ARGUMENT_BYTES = 4096  # of one launch, at most
DEFAULT_SHARED_BYTES = 48 << 10  # what a block may have without being asked for
# CUlaunchConfig: grid, block, shared bytes, stream, address and number of attributes
CONFIGURATION = struct.Struct("@7IPPI4x")
# CUlaunchAttribute: CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6, its value 1
DEPENDENT = ctypes.create_string_buffer(struct.pack("@i4xi60x", 6, 1))
DEPENDENT_ADDRESS = ctypes.addressof(DEPENDENT)
BUFFER_POINTER, BUFFER_SIZE, END = 1, 2, 0  # CU_LAUNCH_PARAM_*
INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT


class Function:
    """One __global__ function on one GPU.

    registers, local_bytes: what a thread has, of which the latter are spills and arrays.
    """

    def __init__(self, handle: Any, name: str, device: int, capability: tuple[int, int]) -> None:
        """handle: CUfunction. name: for messages. device: index of the GPU that it is loaded on."""
        from cuda.bindings import driver

        self.name = name
        self.device = device
        self.dependent = capability >= (9, 0)  # older GPUs know no programmatic launch
        self.registers = self._attribute(handle, "NUM_REGS")
        self.local_bytes = self._attribute(handle, "LOCAL_SIZE_BYTES")
        self._driver = driver
        self._handle = handle
        self._address = int(handle)
        self._shared_bytes = DEFAULT_SHARED_BYTES
        self._format = ""
        self._pack = struct.Struct("")
        self._launch = _driver_launch()

    def launch(
        self,
        grid: Size,
        block: Size,
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
        dependent: bool = False,
    ) -> None:
        """One launch on torch's current stream of this function's GPU.

        arguments, in the function's order: a Tensor or None is a pointer, an int is an `int`, a
        float is a `float`; the types of a function's arguments stay the same. The caller sees to it
        that tensors are on this GPU and contiguous. shared_bytes: dynamic shared memory of a block.
        dependent: it may begin while the kernel before it in the stream ends (programmatic
        dependent launch, from compute capability 9.0): it has to execute `griddepcontrol.wait`
        before it reads what that one wrote, and before it writes. ConfigError with the driver's
        word where it refuses.
        """
        if shared_bytes > self._shared_bytes:
            self._allow(shared_bytes)
        stream = torch._C._cuda_getCurrentRawStream(self.device)
        overlaps = dependent and self.dependent
        configuration = CONFIGURATION.pack(
            *grid, *block, shared_bytes, stream, DEPENDENT_ADDRESS if overlaps else 0, overlaps
        )
        scratch = _scratch
        self._fill(scratch, arguments)
        status = self._launch(configuration, self._address, None, scratch.extra)
        if status == INVALID_CONTEXT:  # a thread in which torch has not yet used the GPU
            torch.cuda.current_stream(self.device).query()
            status = self._launch(configuration, self._address, None, scratch.extra)
        if status:
            raise ConfigError(
                f"the GPU does not launch {self.name} with a grid of {grid}, blocks of {block} and "
                f"{shared_bytes} bytes of shared memory: {self._word(status)}; "
                f"name another kernel, such as triton"
            )

    def _fill(self, scratch: _Scratch, arguments: Sequence[Argument]) -> None:
        """Pack the arguments into the thread's buffer, aligned as C aligns a struct's members."""
        values: list[int | float] = []
        kinds = ""
        for argument in arguments:
            if isinstance(argument, Tensor):
                values.append(argument.data_ptr())
                kinds += "P"
            elif argument is None:
                values.append(0)
                kinds += "P"
            elif isinstance(argument, float):
                values.append(argument)
                kinds += "f"
            else:
                values.append(argument)
                kinds += "i"
        if kinds != self._format:
            self._pack = struct.Struct(f"@{kinds}")
            self._format = kinds
        self._pack.pack_into(scratch.arguments, 0, *values)
        scratch.size.value = self._pack.size

    def _allow(self, shared_bytes: int) -> None:
        """Let blocks have that much dynamic shared memory."""
        attribute = self._driver.CUfunction_attribute
        name = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        (status,) = self._driver.cuFuncSetAttribute(self._handle, name, shared_bytes)
        if status:
            raise ConfigError(
                f"{self.name} asks for {shared_bytes} bytes of shared memory, which "
                f"{torch.cuda.get_device_name(self.device)} does not give ({status.name}); "
                f"choose another configuration"
            )
        self._shared_bytes = shared_bytes

    def _word(self, status: int) -> str:
        """The driver's name of a status."""
        return str(self._driver.CUresult(status).name)

    @staticmethod
    def _attribute(handle: Any, name: str) -> int:
        from cuda.bindings import driver

        attribute = getattr(driver.CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{name}")
        return int(_checked(driver.cuFuncGetAttribute(attribute, handle), name))


def function(source: str, name: str, macros: Mapping[str, int], device: int) -> Function:
    """The function `name` of a source, compiled with these macros, on the GPU of this index.

    The same object for the same arguments. ConfigError where it cannot be compiled or loaded.
    """
    key = (source, name, tuple(sorted(macros.items())), device)
    known = _functions.get(key)
    if known is None:
        with _lock:
            known = _functions.get(key) or _functions.setdefault(
                key, _load(source, name, macros, device)
            )
    return known


def _load(source: str, name: str, macros: Mapping[str, int], device: int) -> Function:
    from cuda.bindings import driver

    capability = torch.cuda.get_device_capability(device)
    cubin = toolchain.compiled(source, macros, toolchain.architecture(capability))
    with torch.cuda.device(device):
        torch.cuda.current_stream().query()  # makes the GPU's context the current one
        # A module may be loaded while a graph is captured: nothing of it becomes part of the graph.
        relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        mode = _checked(driver.cuThreadExchangeStreamCaptureMode(relaxed), source)
        try:
            module = _checked(driver.cuModuleLoadData(cubin), source)
            handle = _checked(driver.cuModuleGetFunction(module, name.encode()), f"{source} {name}")
        finally:
            driver.cuThreadExchangeStreamCaptureMode(mode)
    return Function(handle, f"{source} {name} {dict(macros)}", device, capability)


def _checked(answer: tuple[Any, ...], what: str) -> Any:
    """The value of an answer of the driver, whose first part is its status."""
    status, *values = answer
    if status:
        raise ConfigError(
            f"the GPU's driver refuses {what}: {status.name}; name another kernel, such as triton"
        )
    return values[0] if values else None


@cache
def _driver_launch() -> Any:
    """cuLaunchKernelEx(configuration, function, None, extra) -> status."""
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    launch = library.cuLaunchKernelEx
    launch.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    launch.restype = ctypes.c_int
    return launch


class _Scratch(threading.local):
    """Where the arguments of a launch lie; each thread has its own.

    extra: what tells the driver where they are.
    """

    def __init__(self) -> None:
        self.arguments = ctypes.create_string_buffer(ARGUMENT_BYTES)
        self.size = ctypes.c_size_t()
        self.extra = (ctypes.c_void_p * 5)(
            BUFFER_POINTER,
            ctypes.addressof(self.arguments),
            BUFFER_SIZE,
            ctypes.addressof(self.size),
            END,
        )


_functions: dict[tuple[Any, ...], Function] = {}
_lock = threading.Lock()
_scratch = _Scratch()
