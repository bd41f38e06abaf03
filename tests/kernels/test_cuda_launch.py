"""Launches without a GPU: what the driver would be given, against the layout of its own structs."""

from __future__ import annotations

import ctypes
import struct
import threading

import pytest
import torch

from qbench.errors import ConfigError
from qbench.kernels.gpu.cuda import launch
from qbench.kernels.gpu.cuda.launch import Function, Loaded, Planned, planning

driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

STREAM = 0x123456789


class Driver:
    """In the place of cuLaunchKernelEx: keeps what it was called with, and answers `status`."""

    def __init__(self):
        self.status = 0
        self.configuration = b""
        self.arguments = b""

    def __call__(self, configuration, function, parameters, extra):
        assert parameters is None and function == 77
        pointer, buffer, size, length, end = extra
        assert (pointer, size, end) == (1, 2, None), "CU_LAUNCH_PARAM_*"
        self.configuration = configuration
        self.arguments = ctypes.string_at(buffer, ctypes.c_size_t.from_address(length).value)
        return self.status


@pytest.fixture
def fake(monkeypatch):
    fake = Driver()
    monkeypatch.setattr(launch, "_driver_launch", lambda: fake)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: STREAM, raising=False)
    return fake


def function(overlaps=True, shared_bytes=0):
    made = Function("bits.cu", "product", {"PLANES": 3}, 0)
    made.loaded = Loaded(77, overlaps, shared_bytes)
    made._free_bytes = launch.DEFAULT_SHARED_BYTES - shared_bytes
    made._call = launch._driver_launch()
    return made


def test_a_configuration_has_the_layout_of_the_driver(fake):
    function().launch((5, 6, 7), (32, 2, 1), (), shared_bytes=1000)
    expected = driver.CUlaunchConfig()
    expected.gridDimX, expected.gridDimY, expected.gridDimZ = 5, 6, 7
    expected.blockDimX, expected.blockDimY, expected.blockDimZ = 32, 2, 1
    expected.sharedMemBytes = 1000
    expected.hStream = driver.CUstream(STREAM)
    size = launch.CONFIGURATION.size
    assert fake.configuration == ctypes.string_at(expected.getPtr(), size)


@pytest.mark.parametrize("asked, known, overlaps", [(1, 1, 1), (1, 0, 0), (0, 1, 0)])
def test_a_dependent_launch_has_the_attribute_of_the_driver(fake, asked, known, overlaps):
    function(bool(known)).launch((1, 1, 1), (32, 1, 1), (), dependent=bool(asked))
    address, count = struct.unpack_from("@PI", fake.configuration, 40)
    assert count == overlaps and bool(address) == bool(overlaps)
    if overlaps:
        expected = driver.CUlaunchAttribute()
        name = "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION"
        expected.id = driver.CUlaunchAttributeID[name]
        expected.value.programmaticStreamSerializationAllowed = 1
        size = len(launch.OVERLAP)
        assert ctypes.string_at(address, size) == ctypes.string_at(expected.getPtr(), size)


def test_arguments_are_aligned_as_in_a_struct_of_c(fake):
    class Arguments(ctypes.Structure):
        _fields_ = [
            ("x", ctypes.c_void_p),
            ("rows", ctypes.c_int),
            ("bias", ctypes.c_void_p),
            ("scale", ctypes.c_float),
            ("columns", ctypes.c_int),
            ("y", ctypes.c_void_p),
            ("last", ctypes.c_int),
        ]

    x, y = torch.ones(8), torch.ones(8)[2:]
    launched = function()
    for rows in (3, 4):  # the second launch uses what the first has learned
        launched.launch((1, 1, 1), (32, 1, 1), (x, rows, None, 0.5, -2, y, 9))
        found = Arguments.from_buffer_copy(fake.arguments.ljust(ctypes.sizeof(Arguments), b"\0"))
        assert (found.x, found.rows, found.bias) == (x.data_ptr(), rows, None)
        assert (found.scale, found.columns, found.last) == (0.5, -2, 9)
        assert found.y == y.data_ptr()


def test_threads_do_not_share_the_memory_of_arguments(fake):
    launched = function()
    buffers = []

    def note(configuration, address, parameters, extra):
        buffers.append(extra[1])
        return 0

    launched._call = note
    launched.launch((1, 1, 1), (32, 1, 1), (1,))
    thread = threading.Thread(target=launched.launch, args=((1, 1, 1), (32, 1, 1), (1,)))
    thread.start()
    thread.join()
    assert len(set(buffers)) == 2


def test_a_refused_launch_is_an_error_with_the_driver_s_word(fake):
    fake.status = 1
    with pytest.raises(ConfigError, match="product of bits.cu .* with a grid of") as caught:
        function().launch((1, 1, 1), (2048, 1, 1), ())
    assert "CUDA_ERROR_INVALID_VALUE" in str(caught.value)


def test_a_thread_without_a_context_gets_torch_s(fake, monkeypatch):
    fake.status = launch.INVALID_CONTEXT
    entered = []

    def enter(device):
        entered.append(device)
        fake.status = 0

    monkeypatch.setattr(launch, "_enter", enter)
    function().launch((1, 1, 1), (32, 1, 1), ())
    assert entered == [0]
    assert int(driver.CUresult.CUDA_ERROR_INVALID_CONTEXT) == launch.INVALID_CONTEXT


def test_much_shared_memory_is_asked_for_once(fake, monkeypatch):
    asked = []

    def allow(handle, attribute, value):
        asked.append((int(handle), attribute.name, value))
        return (driver.CUresult(0 if value < 200_000 else 1),)

    monkeypatch.setattr(driver, "cuFuncSetAttribute", allow)
    launched = function()
    for shared_bytes in (48 << 10, 100_000, 90_000, 100_000):
        launched.launch((1, 1, 1), (32, 1, 1), (), shared_bytes=shared_bytes)
    name = "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
    assert asked == [(77, name, 100_000)]
    with pytest.raises(ConfigError, match="asks for 300000 bytes of shared memory a block"):
        launched.launch((1, 1, 1), (32, 1, 1), (), shared_bytes=300_000)


def test_static_shared_memory_counts(fake, monkeypatch):
    asked = []

    def allow(handle, attribute, value):
        asked.append(value)
        return (driver.CUresult(0),)

    monkeypatch.setattr(driver, "cuFuncSetAttribute", allow)
    monkeypatch.setattr(launch, "_load", lambda function: Loaded(77, True, 512))
    launched = Function("bits.cu", "product", {}, 0)
    for shared_bytes in ((48 << 10) - 512, 48 << 10):
        launched.launch((1, 1, 1), (32, 1, 1), (), shared_bytes=shared_bytes)
    assert asked == [48 << 10]


def test_a_function_is_made_and_loaded_once(monkeypatch, fake):
    loads = []

    def load(function):
        loads.append(function.macros)
        return Loaded(77, True, 0)

    monkeypatch.setattr(launch, "_load", load)
    monkeypatch.setattr(launch, "_functions", {})
    first = launch.function("a.cu", "f", {"A": 1, "B": 2}, 0)
    assert launch.function("a.cu", "f", {"B": 2, "A": 1}, 0) is first
    assert launch.function("a.cu", "f", {"A": 1, "B": 3}, 0) is not first
    assert launch.function("a.cu", "f", {"A": 1, "B": 2}, 1) is not first
    assert not loads, "nothing is compiled before a launch"
    for _ in range(2):
        first.launch((1, 1, 1), (32, 1, 1), ())
    assert loads == [{"A": 1, "B": 2}]


def test_planned_launches_are_noted_and_not_made(monkeypatch, fake):
    monkeypatch.setattr(launch, "_load", lambda function: Loaded(77, True, 0))
    launched = Function("a.cu", "f", {"A": 1}, 0)
    with planning() as planned:
        launched.launch((1, 1, 1), (32, 2, 1), ())
    assert planned == [Planned("a.cu", "f", {"A": 1}, 64)]
    assert fake.configuration == b"" and launched.loaded is None
    launched.launch((1, 1, 1), (32, 2, 1), ())
    assert fake.configuration and launched.loaded is not None and len(planned) == 1
