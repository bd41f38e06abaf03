"""Binary-coded and uniform weights on the CPU: table products of up to 8 rows of x, tiles and dense products above.

exact (`cpu-binary`) and fast (`cpu-binary-fast`) are the same sums of integers, with about 26 and 16 bits to an entry
of a table; `kernels/bcq_kernel.h` has the derivation. With L_g = sum |x| over a group and alpha_gi its scales (of a
uniform weight scale * 2^(bits-2-i)), the error of a product is at most ERROR * sum_g L_g sum_i |alpha_gi|, beside the
float32 rounding of the last sum over groups. Measured on random weights, the relative error is 2e-7 and 4e-4. More
than 8 rows of x take the weight dequantized to their dtype, some rows of it at a time: what the dense layer computes.
An x that is not finite makes its whole row NaN in a table product.

The kernels are a shared library with a plain C interface, so one build serves every version of torch. torch is imported
first, and so is its OpenMP runtime, which the library then shares.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from functools import cache, partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from qbench.errors import QbenchError
from qbench.formats import Binary, Uniform
from qbench.formats.packing import unpack
from qbench.kernels.registry import Kernel, Request

BATCH = 8  # rows of x that the table product takes at most
TILE_BYTES = 1 << 21  # of dequantized weight between two dense products: it stays in the cache
HUGE_PAGE = 1 << 21
ISAS = ("portable", "avx2", "avx512")
EXACT, FAST = 0, 1
EXACT_ERROR, FAST_ERROR = 2.5e-6, 5e-4  # at most, in units of sum over the groups of sum |x| sum_i |alpha_i|
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NO_TYPE = 3
_FAILURES = {1: "its arguments do not fit each other", 2: "memory is short", 3: "the processor lacks the instructions"}


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
        ("product", ctypes.c_int, pointer, pointer, pointer, i32, i64, pointer, pointer, i32, i32, i32),
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
    pages = torch.frombuffer(private, dtype=torch.uint8)  # those that are never touched take no memory
    first = -pages.data_ptr() % HUGE_PAGE
    return pages[first : first + nbytes]


class Derived:
    """A weight in the order in which the kernels read it: the same bits and scales, and rows padded to 32.

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
        """x (..., in) of 1 to 8 rows, float32 or bfloat16; bias (out,) float32; both contiguous -> (..., out)."""
        out, columns = self.shape
        y = x.new_empty((*x.shape[:-1], out))
        rows, kind, threads = x.numel() // columns, _TYPES[x.dtype], torch.get_num_threads()
        offset, chosen = None if bias is None else bias.data_ptr(), best_isa() if isa is None else isa
        pointers = self.about, self.data, x.data_ptr()
        _check(self.multiply(*pointers, kind, rows, offset, y.data_ptr(), mode, chosen, threads))
        return y

    def dequantize(self, first: int, last: int, out: Tensor, isa: int | None = None) -> Tensor:
        """Rows first..last-1, `first` a multiple of 32, in the first rows of `out` (.., in) float32 or bfloat16."""
        chosen = best_isa() if isa is None else isa
        kind, threads = _TYPES[out.dtype], torch.get_num_threads()
        _check(library().bcq_dequantize(self.about, self.data, first, last, out.data_ptr(), kind, chosen, threads))
        return out[: last - first]

    def dense_product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (any, in), bias (out,) of the dtype of x -> (any, out): dense products with a tile of the weight each."""
        out, columns = self.shape
        step = max(32, TILE_BYTES // (columns * x.element_size()) // 32 * 32)
        tile = x.new_empty(min(step, out), columns)
        y = x.new_empty(x.shape[0], out)
        for first in range(0, out, step):
            rows = slice(first, min(first + step, out))
            weight = self.dequantize(first, rows.stop, tile)
            y[:, rows] = torch.nn.functional.linear(x, weight, None if bias is None else bias[rows])
        return y


# Derived layouts, by the storage of the weight's first part and its address therein. A storage lives exactly as long
# as some tensor has the data, whichever Python object that is: `.to()` and `load_state_dict(assign=True)` bring
# another one, and torch.compile may pass aliases of the same. What was written in place is told by the tensors'
# versions; inference tensors have none and are taken to be constant.
_derived: WeakKeyDictionary[Any, dict[int, tuple[Any, Derived]]] = WeakKeyDictionary()


def derived(parts: list[Tensor], stated: Mapping[str, Any]) -> Derived:
    """The layout of the weight that `parts` are, made once."""
    stamp = [(part.data_ptr(), 0 if part.is_inference() else part._version) for part in parts], stated["spec"]
    found = _derived.setdefault(parts[0].untyped_storage(), {})
    key = parts[0].data_ptr()
    if key not in found or found[key][0] != stamp:
        kind = Binary if stated["format"] == "binary" else Uniform
        tensors = dict(zip(stated["parts"], parts, strict=True))
        found[key] = stamp, Derived(kind.from_tensors(tensors, stated["spec"]))
    return found[key][1]


def _run(x: Tensor, parts: list[Tensor], bias: Tensor | None, stated: Mapping[str, Any], mode: int) -> Tensor:
    weight = derived(parts, stated)
    x = x.contiguous()
    if not x.numel():
        return x.new_empty((*x.shape[:-1], weight.shape[0]))
    if x.numel() <= BATCH * x.shape[-1]:
        return weight.product(x, None if bias is None else bias.float().contiguous(), mode)
    y = weight.dense_product(x.flatten(0, -2), None if bias is None else bias.to(x.dtype))
    return y.view(*x.shape[:-1], weight.shape[0])


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
