"""Binary-coded and uniform weights on the CPU: products by tables, or dense where x has many rows.

exact (`cpu-binary`) and fast (`cpu-binary-fast`) are the same sums of integers, with about 26 and
16 bits to an entry of a table, with AVX2 24 and 12; `kernels/cpu/bcq_kernel.h` and `bcq_avx2.c`
have the derivation. With L_g = sum |x| over a group and alpha_gi its scales (of a uniform weight
scale * 2^(bits-2-i)), the error of a product is at most ERROR * sum_g L_g sum_i |alpha_gi|, beside
the float32 rounding of the sums: of x over a group, about 1e-7 L_g times its shift (of a uniform
weight scale * ((2^bits - 1)/2 - zero)), and of the last one over groups. ERROR is 2.5e-6 of the
exact one, 5e-4 of the fast one, and 8e-3 of that with AVX2. Measured on random weights, the
relative error is 2e-7 and 4e-4. Where one input outweighs the others of a row that has one scale, a
product is little but that input's, and its error has a share of all inputs: that of the fast one
was 7e-3 at 1024 inputs, and grows as their square root.

From about 1e-33 down, x has fewer digits, as float32 has from 1e-38. An x that is not finite makes
its whole row NaN, and so does one of which the magnitudes of 128 inputs add up to more than float32
holds, 3.4e38. Scales in float32 multiply integers first: from about 1e30 up, with few bits 1e31, a
product by tables overflows whatever x is, also one that float32 holds. Many rows take the weight
dequantized to their dtype, some rows of it at a time: what the dense layer computes; where bfloat16
is emulated, in float32, rounded at the end.

The kernels are a shared library with a plain C interface, so one build serves every version of
torch. torch is imported first, and so is its OpenMP runtime, which the library then shares.
"""

from __future__ import annotations

import copy
import ctypes
import mmap
import threading
from functools import partial

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.environment import faster_in_bfloat16
from qbench.formats import Binary, Uniform
from qbench.formats.packing import unpack
from qbench.kernels.contract import Description, Kernel, Prepared, Request, not_whole_words
from qbench.kernels.cpu.library import (
    ISAS,
    NO_TYPE,
    TYPES,
    Weight,
    check,
    chosen_isa,
    library,
    unavailable,
)
from qbench.kernels.layouts import Layouts

# Rows of x times planes up to which tables are faster than dense products, which are slower in
# float32. On a Zen 4 core at 4096 x 4096, a row and plane of a table product took 0.1 ms, a row of
# a float32 dense one 0.43 ms, of bfloat16 0.2; with AVX2 alone 0.15, 0.4, and 5 to dequantize.
FLOAT32_WORK = {"portable": 512, "avx2": 160, "avx512": 512}
BFLOAT16_WORK = 64
TILE_BYTES = 1 << 22  # of dequantized weight between two dense products: they read it from a cache
HUGE_PAGE = 1 << 21
EXACT, FAST = 0, 1  # enum bcq_mode


class Derived:
    """A weight (out, in) in the order in which the kernels read it: the same bits and scales.

    Rows are padded to 32, at 2 bits to 64, at 1 bit to 128. Beyond that, packed zero points of a
    uniform weight widen to 16 bits each.
    """

    def __init__(self, weight: Binary | Uniform, isa: int | None = None) -> None:
        """From the canonical tensors, on the CPU, which it does not keep.

        isa: index in ISAS of the instruction set that computes; None: what `chosen_isa` says.
        """
        if isa is None:
            isa = chosen_isa()
        if isinstance(weight, Uniform):
            codes = weight.codes
            scale = _stored(weight.scale)
            shift = weight.zero_point
            if shift is not None and shift.dtype == torch.uint8:
                shift = unpack(shift, weight.bits, scale.shape[1]).half()  # (out, groups)
        else:
            codes = weight.planes
            scale = _stored(weight.alpha)
            shift = weight.shift
        # These three live until they are packed: the library sees their addresses alone.
        codes = codes.contiguous()  # bits in the canonical layout, as they are stored
        scale = scale.contiguous()
        shift_type = NO_TYPE
        if shift is not None:
            shift = _stored(shift).contiguous()
            shift_type = TYPES[shift.dtype]
        self.shape = weight.shape
        self.description = Weight(
            *weight.shape,
            weight.group_size,
            weight.bits,
            isinstance(weight, Uniform),
            TYPES[scale.dtype],
            shift_type,
            isa,
        )
        self.about = ctypes.addressof(self.description)
        self.memory = _memory(library().bcq_size(self.about))
        self.data = self.memory.data_ptr()
        self.multiply = library().bcq_product
        status = library().bcq_pack(
            self.about, codes.data_ptr(), scale.data_ptr(), _address(shift), self.data
        )
        check(status)

    def copied(self) -> Derived:
        """The same in memory of its own."""
        twin = copy.copy(self)
        twin.memory = _memory(self.memory.nbytes)
        twin.data = twin.memory.data_ptr()
        library().bcq_prefer_huge_pages(twin.data, twin.memory.nbytes)
        twin.memory.copy_(self.memory)
        return twin

    def product(self, x: Tensor, bias: Tensor | None, mode: int) -> Tensor:
        """The product by tables, y = x W^T + bias.

        x (..., in) float32 or bfloat16, contiguous; bias (out,) float32, contiguous, or None; mode
        EXACT or FAST -> (..., out) in the dtype of x.
        """
        out, columns = self.shape
        y = x.new_empty((*x.shape[:-1], out))
        status = self.multiply(
            self.about,
            self.data,
            x.data_ptr(),
            TYPES[x.dtype],
            x.numel() // columns,
            _address(bias),
            y.data_ptr(),
            mode,
            torch.get_num_threads(),
        )
        check(status)
        return y

    def dequantize(self, first: int, last: int, out: Tensor) -> Tensor:
        """Rows first..last-1 of the weight, in the first rows of `out`, which are returned.

        first: a multiple of 32. out (at least last - first, in) float32 or bfloat16.
        """
        status = library().bcq_dequantize(
            self.about,
            self.data,
            first,
            last,
            out.data_ptr(),
            TYPES[out.dtype],
            torch.get_num_threads(),
        )
        check(status)
        return out[: last - first]

    def dense_product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (rows, in), bias (out,) of the dtype of x -> (rows, out): a dense product per tile.

        A tile is some rows of the weight, dequantized to the dtype of x into the same memory.
        """
        out, columns = self.shape
        rows = x.shape[0]
        # Rows of a tile: a multiple of 32, as `dequantize` begins at one.
        step = max(32, TILE_BYTES // (columns * x.element_size()) // 32 * 32)
        tile = _tile(min(step, out), columns, x.dtype)
        # bfloat16 products of whole vectors of rows are faster with the weight on the left: 12.9
        # for 13.7 ms at 64 rows
        left = x.dtype == torch.bfloat16 and rows >= 48 and rows % 16 == 0
        shape = (rows, out)
        if left:
            shape = (out, rows)  # W x^T, transposed at the end
        y = x.new_empty(shape)
        for first in range(0, out, step):
            part = slice(first, min(first + step, out))
            weight = self.dequantize(first, part.stop, tile)
            constant = None if bias is None else bias[part]
            if not left:
                y[:, part] = torch.nn.functional.linear(x, weight, constant)
            elif constant is None:
                torch.mm(weight, x.T, out=y[part])
            else:
                torch.addmm(constant[:, None], weight, x.T, out=y[part])
        return y.T.contiguous() if left else y

    def by_tables(self, x: Tensor) -> bool:
        """Whether tables are the faster way for the rows of x (..., in)."""
        work = BFLOAT16_WORK
        if _dense_dtype(x.dtype) == torch.float32:
            work = FLOAT32_WORK[ISAS[self.description.isa]]
        return x.numel() // self.shape[1] * self.description.bits <= work

    def linear(self, x: Tensor, bias: Tensor | None, mode: int) -> Tensor:
        """The product in the faster way.

        x (..., in) float32 or bfloat16, contiguous; bias (out,) or None -> (..., out).
        """
        if self.by_tables(x):
            if bias is not None:
                bias = bias.float().contiguous()
            return self.product(x, bias, mode)
        dtype = _dense_dtype(x.dtype)
        if bias is not None:
            bias = bias.to(dtype)
        y = self.dense_product(x.flatten(0, -2).to(dtype), bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.shape[0])


def _dense_dtype(dtype: torch.dtype) -> torch.dtype:
    """What dense products with x of this dtype are computed in: float32 where that is faster."""
    if dtype == torch.bfloat16 and not faster_in_bfloat16():
        return torch.float32
    return dtype


def _stored(scale: Tensor) -> Tensor:
    """float16 or float32; what is neither is taken as float32, as `dequantize` does."""
    if scale.dtype in (torch.float16, torch.float32):
        return scale
    return scale.float()


def _address(part: Tensor | None) -> int | None:
    """Where the elements of a contiguous tensor begin; None, which C reads as NULL, without one."""
    return None if part is None else part.data_ptr()


def _memory(nbytes: int) -> Tensor:
    """uint8 (nbytes,); a large one begins at a multiple of 2 MiB, so that it can be huge pages."""
    if nbytes < HUGE_PAGE:
        return torch.empty(nbytes, dtype=torch.uint8)
    private = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages = torch.frombuffer(private, dtype=torch.uint8)  # untouched ones take no memory
    # One huge page more was mapped than needed, so that it may begin at any multiple.
    first = -pages.data_ptr() % HUGE_PAGE
    return pages[first : first + nbytes]


_scratch = threading.local()


def _tile(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(rows, columns) to be overwritten.

    A thread gets the same memory at each call, since new pages cost time.
    """
    nbytes = rows * columns * dtype.itemsize
    if getattr(_scratch, "memory", None) is None or _scratch.memory.nbytes < nbytes:
        _scratch.memory = _memory(nbytes)
    return _scratch.memory[:nbytes].view(dtype).view(rows, columns)


def _derive(weight: WeightFormat) -> Derived:
    assert isinstance(weight, Binary | Uniform)  # the formats that the kernels declare
    return Derived(weight)


_layouts = Layouts(_derive)


def _run(
    x: Tensor, parts: list[Tensor], bias: Tensor | None, description: Description, mode: int
) -> Tensor:
    return _layouts.of(parts, description).linear(x.contiguous(), bias, mode)


def _prepare(weight: WeightFormat, mode: int) -> Prepared:
    return _prepared(_derive(weight), mode)


def _prepared(derived: Derived, mode: int) -> Prepared:
    def run(x: Tensor) -> Tensor:
        return derived.linear(x, None, mode)

    return Prepared(run, derived.memory.nbytes, lambda: _prepared(derived.copied(), mode))


def _refuses(request: Request) -> str | None:
    return not_whole_words(request.shape[1], request.group_size)


def _describe(note: str) -> str:
    if unavailable() is not None:
        return note
    facts = ISAS[chosen_isa()]
    if not library().bcq_has_threads():
        facts += ", one thread: built without OpenMP"
    return f"{note} ({facts})"


def _kernel(name: str, mode: int, label: str, error: float, note: str) -> Kernel:
    return Kernel(
        name,
        partial(_run, mode=mode),
        formats=("binary", "uniform"),
        bits=(1, 8),
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        automatic=mode == EXACT,
        error=error,
        available=unavailable,
        refuses=_refuses,
        describe=partial(_describe, note),
        prepare=partial(_prepare, mode=mode),
        label=label,
    )


# Measured by `qbench check`: 4e-4 and 3e-7; dense products of float32 reach 6e-7 at 4096 inputs.
# They hold for weights without an input that outweighs the others; see above.
KERNELS = (
    _kernel("cpu-binary-fast", FAST, "fast", 1e-3, "tables of 16-bit integers"),
    _kernel("cpu-binary", EXACT, "exact", 1e-5, "tables as precise as float32 sums"),
)
