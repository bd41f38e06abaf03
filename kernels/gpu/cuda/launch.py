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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, cast

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
OVERLAP = struct.pack("@i4xi60x", 6, 1)
BUFFER_POINTER, BUFFER_SIZE, END = 1, 2, 0  # CU_LAUNCH_PARAM_*
INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT


class Planned(NamedTuple):
    """A launch that was not made.

    source, name, macros: of its function. threads: of a block.
    """

    source: str
    name: str
    macros: Mapping[str, int]
    threads: int


class Loaded(NamedTuple):
    """A __global__ function in the driver.

    address: of the CUfunction. overlaps: whether its GPU knows programmatic dependent launches.
    shared_bytes: static shared memory of a block.
    """

    address: int
    overlaps: bool
    shared_bytes: int


class Function:
    """One __global__ function on one GPU, compiled and loaded by the first launch."""

    def __init__(self, source: str, name: str, macros: Mapping[str, int], device: int) -> None:
        """device: index of the GPU. The rest as `function` takes it."""
        self.source = source
        self.name = name
        self.macros = dict(macros)
        self.device = device
        self.loaded: Loaded | None = None
        self._free_bytes = 0  # dynamic shared memory of a block that need not be asked for
        self._pack: struct.Struct | None = None  # of the arguments; the first launch tells
        self._call: Any = None  # of the driver, which may not be there before a launch

    def __str__(self) -> str:
        return f"{self.name} of {self.source} {self.macros}"

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
        float is a `float`, and these kinds stay the same. The caller sees to it that tensors are on
        this GPU and contiguous. shared_bytes: dynamic shared memory of a block. dependent: it may
        begin while the kernel before it in the stream ends (programmatic dependent launch, from
        compute capability 9.0): it has to execute `griddepcontrol.wait` before it reads what that
        one wrote, and before it writes. ConfigError with the driver's word where it refuses.
        """
        if self.loaded is None:
            if _memory.planned is not None:
                threads = block[0] * block[1] * block[2]
                _memory.planned.append(Planned(self.source, self.name, self.macros, threads))
                return
            self._load()
        if shared_bytes > self._free_bytes:
            self._allow(shared_bytes)
        loaded = cast(Loaded, self.loaded)
        stream = torch._C._cuda_getCurrentRawStream(self.device)
        overlaps = dependent and loaded.overlaps
        attributes = _OVERLAP_ADDRESS if overlaps else 0
        configuration = CONFIGURATION.pack(
            *grid, *block, shared_bytes, stream, attributes, overlaps
        )
        memory = _memory  # of this thread
        self._fill(memory, arguments)
        status = self._call(configuration, loaded.address, None, memory.extra)
        if status == INVALID_CONTEXT:  # a thread in which nothing has used the GPU yet
            _enter(self.device)
            status = self._call(configuration, loaded.address, None, memory.extra)
        if status:
            raise ConfigError(
                f"the GPU does not launch {self} with a grid of {grid}, blocks of {block} and "
                f"{shared_bytes} bytes of shared memory ({_word(status)}); "
                f"name another kernel, such as triton"
            )

    def _load(self) -> None:
        with _lock:  # a second thread waits, instead of compiling the same
            if self.loaded is None:
                self._call = _driver_launch()
                loaded = _load(self)
                self._free_bytes = DEFAULT_SHARED_BYTES - loaded.shared_bytes
                self.loaded = loaded

    def _fill(self, memory: _Memory, arguments: Sequence[Argument]) -> None:
        """Pack the arguments into the thread's memory, aligned as members of a struct of C are."""
        pack = self._pack
        if pack is None:
            pack = self._pack = struct.Struct("@" + "".join(map(_kind, arguments)))
        values = [
            argument.data_ptr() if isinstance(argument, Tensor) else argument or 0
            for argument in arguments
        ]
        pack.pack_into(memory.arguments, 0, *values)
        memory.size.value = pack.size

    def _allow(self, shared_bytes: int) -> None:
        """Let blocks have that much dynamic shared memory."""
        from cuda.bindings import driver

        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        handle = driver.CUfunction(cast(Loaded, self.loaded).address)
        (status,) = driver.cuFuncSetAttribute(handle, attribute, shared_bytes)
        if status:
            raise ConfigError(
                f"{self} asks for {shared_bytes} bytes of shared memory a block, which "
                f"this GPU does not give ({status.name}); choose another configuration"
            )
        self._free_bytes = shared_bytes


def function(source: str, name: str, macros: Mapping[str, int], device: int) -> Function:
    """The function `name` of a source, compiled with these macros, on the GPU of this index.

    The same object for the same arguments. Its first launch raises ConfigError where it cannot be
    compiled or loaded.
    """
    key = (source, name, tuple(sorted(macros.items())), device)
    known = _functions.get(key)
    if known is None:
        known = _functions.setdefault(key, Function(source, name, macros, device))
    return known


@contextmanager
def planning() -> Iterator[list[Planned]]:
    """Launches of this thread inside are noted and not made, unless their function is loaded."""
    planned: list[Planned] = []
    _memory.planned = planned
    try:
        yield planned
    finally:
        _memory.planned = None


def _load(function: Function) -> Loaded:
    from cuda.bindings import driver

    capability = torch.cuda.get_device_capability(function.device)
    architecture = toolchain.architecture(capability)
    cubin = toolchain.compiled(function.source, function.macros, architecture)
    what = str(function)
    with torch.cuda.device(function.device):
        _enter(function.device)
        # While a graph is captured, only this mode admits that something is loaded beside it.
        relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        mode = _checked(driver.cuThreadExchangeStreamCaptureMode(relaxed), what)
        try:
            module = _checked(driver.cuModuleLoadData(cubin), what)
            handle = _checked(driver.cuModuleGetFunction(module, function.name.encode()), what)
        finally:
            driver.cuThreadExchangeStreamCaptureMode(mode)
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES
        shared_bytes = _checked(driver.cuFuncGetAttribute(attribute, handle), what)
    return Loaded(int(handle), capability >= (9, 0), shared_bytes)


def _kind(argument: Argument) -> str:
    """The letter of `struct` for an argument."""
    if isinstance(argument, float):
        return "f"
    return "i" if isinstance(argument, int) else "P"


def _enter(device: int) -> None:
    """Make the context that torch uses on this GPU the current one of this thread."""
    from cuda.bindings import driver

    handle = _checked(driver.cuDeviceGet(device), f"GPU {device}")
    context = _checked(driver.cuDevicePrimaryCtxRetain(handle), f"GPU {device}")
    _checked(driver.cuCtxSetCurrent(context), f"GPU {device}")


def _checked(answer: tuple[Any, ...], what: str) -> Any:
    """The value of an answer of the driver, whose first part is its status."""
    status, *values = answer
    if status:
        raise ConfigError(
            f"the GPU's driver refuses {what} ({status.name}); name another kernel, such as triton"
        )
    return values[0] if values else None


def _word(status: int) -> str:
    """The driver's name of a status."""
    from cuda.bindings import driver

    return str(driver.CUresult(status).name)


@cache
def _driver_launch() -> Any:
    """cuLaunchKernelEx(configuration, function, None, extra) -> status."""
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    launch = library.cuLaunchKernelEx
    launch.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    launch.restype = ctypes.c_int
    return launch


class _Memory(threading.local):
    """Where the arguments of a launch lie; each thread has its own.

    extra: what tells the driver where they are. planned: launches that are not made, or None.
    """

    def __init__(self) -> None:
        self.planned: list[Planned] | None = None
        self.arguments = ctypes.create_string_buffer(ARGUMENT_BYTES)
        self.size = ctypes.c_size_t()
        self.extra = (ctypes.c_void_p * 5)(
            BUFFER_POINTER,
            ctypes.addressof(self.arguments),
            BUFFER_SIZE,
            ctypes.addressof(self.size),
            END,
        )


_overlap = ctypes.create_string_buffer(OVERLAP, len(OVERLAP))
_OVERLAP_ADDRESS = ctypes.addressof(_overlap)
_functions: dict[tuple[Any, ...], Function] = {}
_lock = threading.Lock()
_memory = _Memory()
