"""Binary-coded and uniform weights on the CPU: table products of few rows of x, tiles and dense products of many.

exact (`cpu-binary`) and fast (`cpu-binary-fast`) are the same sums of integers, with about 26 and
16 bits to an entry of a table; `kernels/bcq_kernel.h` has the derivation. With L_g = sum |x| over a
group and alpha_gi its scales (of a uniform weight scale * 2^(bits-2-i)), the error of a product is
at most ERROR * sum_g L_g sum_i |alpha_gi|, beside the float32 rounding of the last sum over groups.
Measured on random weights, the relative error is 2e-7 and 4e-4. An x that is not finite makes its
whole row NaN. More rows than WORK allows take the weight dequantized to their dtype, some rows of
it at a time: what the dense layer computes.

The kernels are a shared library with a plain C interface, so one build serves every version of
torch. torch is imported first, and so is its OpenMP runtime, which the library then shares.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Mapping
from functools import cache, partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import QbenchError
from qbench.formats import Binary, Uniform
from qbench.formats.packing import unpack
from qbench.kernels.layouts import Layouts
from qbench.kernels.registry import Kernel, Request

# Rows of x times planes up to which tables are faster than dense products, which are slower in
# float32. On a Zen 4 core at 4096 x 4096, a row and plane of a table product took 0.1 ms, a row of
# a float32 dense one 0.43 ms, of bfloat16 0.2.
WORK = {torch.float32: 512, torch.bfloat16: 64}
TILE_BYTES = 1 << 22  # of dequantized weight between two dense products: they read it from a cache
HUGE_PAGE = 1 << 21
ISAS = ("portable", "avx2", "avx512")
EXACT, FAST = 0, 1
EXACT_ERROR, FAST_ERROR = (
    2.5e-6,
    5e-4,
)  # at most, in units of sum over the groups of sum |x| sum_i |alpha_i|
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NO_TYPE = 3
_FAILURES = {
    1: "its arguments do not fit each other",
    2: "memory is short",
    3: "the processor lacks the instructions",
}


class _Weight(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("uniform", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
        ("shift_type", ctypes.c_int32),
    )


def _found() -> Path | None:
    """The library that the package's build left here: with threads, or without where the compiler has no OpenMP."""
    names = [f"{stem}{suffix}" for stem in ("_bcq", "_bcq_serial") for suffix in EXTENSION_SUFFIXES]
    return next((path for name in names if (path := Path(__file__).parent / name).exists()), None)


@cache
def unavailable() -> str | None:
    """Why the kernels cannot be used in this process, or None."""
    path = _found()
    if path is None:
        return "its C library was not built; install qbench again where a C compiler is"
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return f"its C library does not load ({error}); install qbench again"
    return None


@cache
def library() -> Any:
    """The C functions, typed. QbenchError where there are none."""
    if (reason := unavailable()) is not None:
        raise QbenchError(f"the CPU kernels cannot be used: {reason}")
    found = ctypes.CDLL(str(_found()))
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    for name, result, *arguments in (
        ("size", i64, pointer),
        ("pack", ctypes.c_int, pointer, pointer, pointer, pointer, pointer),
        (
            "product",
            ctypes.c_int,
            pointer,
            pointer,
            pointer,
            i32,
            i64,
            pointer,
            pointer,
            i32,
            i32,
            i32,
        ),
        ("dequantize", ctypes.c_int, pointer, pointer, i64, i64, pointer, i32, i32, i32),
        ("read", ctypes.c_uint64, pointer, i64, i32, i32),
        ("prefer_huge_pages", None, pointer, i64),
        ("best_isa", ctypes.c_int),
        ("has_threads", ctypes.c_int),
    ):
        function = getattr(found, f"bcq_{name}")
        function.restype, function.argtypes = result, arguments
    return found


@cache
def best_isa() -> int:
    """Index in ISAS of the best that this processor has."""
    return library().bcq_best_isa()


def _check(status: int) -> None:
    if status:
        raise QbenchError(f"the CPU kernel failed: {_FAILURES.get(status, status)}")


def _memory(nbytes: int) -> Tensor:
    """uint8 (nbytes,); where it is large, pages of its own from a multiple of 2 MiB on, which can be huge pages."""
    if nbytes < HUGE_PAGE:
        return torch.empty(nbytes, dtype=torch.uint8)
    private = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages = torch.frombuffer(
        private, dtype=torch.uint8
    )  # those that are never touched take no memory
    first = -pages.data_ptr() % HUGE_PAGE
    return pages[first : first + nbytes]


def _stored(scale: Tensor) -> Tensor:
    """float16 or float32; what is neither is taken as float32, as `dequantize` does."""
    return scale if scale.dtype in (torch.float16, torch.float32) else scale.float()


_scratch = threading.local()


def _tile(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(rows, columns) to be overwritten: a thread has the same memory at each call, since new pages cost time."""
    nbytes = rows * columns * dtype.itemsize
    if getattr(_scratch, "memory", None) is None or _scratch.memory.nbytes < nbytes:
        _scratch.memory = _memory(nbytes)
    return _scratch.memory[:nbytes].view(dtype).view(rows, columns)


class Derived:
    """A weight in the order in which the kernels read it: the same bits and scales, and rows padded to 32,
    64 at 2 bits, 128 at 1 bit.

    Beyond that, packed zero points of a uniform weight widen to 16 bits each.
    """

    def __init__(self, weight: Binary | Uniform) -> None:
        """From the canonical tensors, on the CPU, which it does not keep."""
        uniform = isinstance(weight, Uniform)
        if isinstance(weight, Uniform):
            codes, scale, shift = weight.codes, weight.scale, weight.zero_point
            if shift is not None and shift.dtype == torch.uint8:
                shift = unpack(shift, weight.bits, scale.shape[1]).half()
        else:
            codes, scale, shift = weight.planes, weight.alpha, weight.shift
        scale, shift = _stored(scale), None if shift is None else _stored(shift)
        types = _TYPES[scale.dtype], _NO_TYPE if shift is None else _TYPES[shift.dtype]
        self.shape = weight.shape
        self.description = _Weight(*weight.shape, weight.group_size, weight.bits, uniform, *types)
        self.about = ctypes.addressof(self.description)
        self.memory = _memory(library().bcq_size(self.about))
        self.data = self.memory.data_ptr()
        self.multiply = library().bcq_product
        parts = [None if part is None else part.contiguous() for part in (codes, scale, shift)]
        pointers = [None if part is None else part.data_ptr() for part in parts]
        _check(library().bcq_pack(self.about, *pointers, self.data))

    def product(self, x: Tensor, bias: Tensor | None, mode: int, isa: int | None = None) -> Tensor:
        """x (..., in) float32 or bfloat16, bias (out,) float32, both contiguous -> (..., out), by tables."""
        out, columns = self.shape
        y = x.new_empty((*x.shape[:-1], out))
        rows, kind, threads = x.numel() // columns, _TYPES[x.dtype], torch.get_num_threads()
        offset, chosen = (
            None if bias is None else bias.data_ptr(),
            best_isa() if isa is None else isa,
        )
        pointers = self.about, self.data, x.data_ptr()
        _check(self.multiply(*pointers, kind, rows, offset, y.data_ptr(), mode, chosen, threads))
        return y

    def dequantize(self, first: int, last: int, out: Tensor, isa: int | None = None) -> Tensor:
        """Rows first..last-1, `first` a multiple of 32, in the first rows of `out` (.., in) float32 or bfloat16."""
        chosen = best_isa() if isa is None else isa
        kind, threads = _TYPES[out.dtype], torch.get_num_threads()
        _check(
            library().bcq_dequantize(
                self.about, self.data, first, last, out.data_ptr(), kind, chosen, threads
            )
        )
        return out[: last - first]

    def dense_product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (rows, in), bias (out,) of the dtype of x -> (rows, out): dense products with a tile of the weight each."""
        (out, columns), rows = self.shape, x.shape[0]
        step = max(32, TILE_BYTES // (columns * x.element_size()) // 32 * 32)
        tile = _tile(min(step, out), columns, x.dtype)
        # bfloat16 products of whole vectors of rows are faster with the weight on the left: 12.9
        # for 13.7 ms at 64 rows
        left = x.dtype == torch.bfloat16 and rows >= 48 and rows % 16 == 0
        y = x.new_empty((out, rows) if left else (rows, out))
        for first in range(0, out, step):
            part = slice(first, min(first + step, out))
            weight, constant = (
                self.dequantize(first, part.stop, tile),
                None if bias is None else bias[part],
            )
            if not left:
                y[:, part] = torch.nn.functional.linear(x, weight, constant)
            elif constant is None:
                torch.mm(weight, x.T, out=y[part])
            else:
                torch.addmm(constant[:, None], weight, x.T, out=y[part])
        return y.T.contiguous() if left else y

    def by_tables(self, x: Tensor) -> bool:
        """Whether tables are the faster way for so many rows."""
        return x.numel() // self.shape[1] * self.description.bits <= WORK[x.dtype]

    def linear(self, x: Tensor, bias: Tensor | None, mode: int) -> Tensor:
        """x (..., in) float32 or bfloat16, contiguous, bias (out,) or None -> (..., out), the faster way."""
        if self.by_tables(x):
            return self.product(x, None if bias is None else bias.float().contiguous(), mode)
        y = self.dense_product(x.flatten(0, -2), None if bias is None else bias.to(x.dtype))
        return y.view(*x.shape[:-1], self.shape[0])


def _derive(weight: WeightFormat) -> Derived:
    assert isinstance(weight, Binary | Uniform)  # the formats that the kernels state
    return Derived(weight)


_layouts = Layouts(_derive)


def _run(
    x: Tensor, parts: list[Tensor], bias: Tensor | None, stated: Mapping[str, Any], mode: int
) -> Tensor:
    return _layouts.of(parts, stated).linear(x.contiguous(), bias, mode)


def _refuses(request: Request) -> str | None:
    group, columns = request.group_size or 0, request.shape[1]
    if group % 32 or columns % 32:
        return f"groups of {group} in {columns} inputs are not multiples of 32"
    return None


def _describe(note: str) -> str:
    if unavailable() is not None:
        return note
    threads = "" if library().bcq_has_threads() else ", one thread: built without OpenMP"
    return f"{note} ({ISAS[best_isa()]}{threads})"


def _kernel(name: str, mode: int, note: str) -> Kernel:
    return Kernel(
        name,
        partial(_run, mode=mode),
        formats=("binary", "uniform"),
        bits=(1, 8),
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        automatic=mode == EXACT,
        available=unavailable,
        refuses=_refuses,
        describe=partial(_describe, note),
    )


KERNELS = (
    _kernel("cpu-binary-fast", FAST, "tables of 16-bit integers"),
    _kernel("cpu-binary", EXACT, "tables as precise as float32 sums"),
)
