"""Other programs' products with quantized weights on the CPU, as candidates; each where installed.

torch int4    `aten::_weight_int4pack_mm_for_cpu`, bfloat16 x, groups of 128, in torch itself
bitsandbytes  NF4, blocks of 64, bfloat16 x
ggml          Q2_K, Q3_K, Q4_K with float32 x, through the library inside the wheel of xllamacpp; it
              rounds x to 8 bits
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbench.errors import QbenchError
from qbench.kernels.contract import Prepared
from qbench.latency.candidates import random_matrix, repeated, usual_size
from qbench.latency.timing import Candidate, Shape, collect, copies_of

GROUP = 128
GGML_TYPES = {"Q2_K": 10, "Q3_K": 11, "Q4_K": 12}  # enum ggml_type
GGML_FLOAT32 = 0
GGML_BLOCK = 256  # inputs
GGML_WORKSPACE = 64 << 20  # bytes, beside the tensors


def peers(shape: Shape) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates, and for each program that is not among them the reason."""
    x = random_matrix(shape.rows, shape.columns, 1)
    weight = random_matrix(shape.out, shape.columns, 2).div_(shape.columns**0.5)
    programs: dict[str, Callable[[Tensor, Tensor], Iterator[Candidate]]] = {
        "torch int4": _torch_int4,
        "bitsandbytes": _bitsandbytes,
        "ggml": _ggml,
    }
    return collect({name: partial(make, weight, x) for name, make in programs.items()})


def _torch_int4(weight: Tensor, x: Tensor) -> Iterator[Candidate]:
    """w = (code - 8) scale + zero, codes in 0..15. QbenchError where groups do not fit the rows."""
    columns = weight.shape[1]
    if columns % GROUP:
        raise QbenchError(f"its groups have {GROUP} inputs, which do not divide {columns}")
    groups = weight.unflatten(1, (-1, GROUP))  # (out, groups, 128)
    low = groups.amin(-1)
    scale = ((groups.amax(-1) - low) / 15).bfloat16()
    step = scale.float()[..., None]
    codes = ((groups - low[..., None]) / step).round().clamp(0, 15).to(torch.int32)
    zero = (low + 8 * scale.float()).bfloat16()
    meaning = ((codes.float() - 8) * step + zero.float()[..., None]).flatten(1)
    packed = torch._convert_weight_to_int4pack_for_cpu(codes.flatten(1), 1)
    scales_and_zeros = torch.stack([scale.T, zero.T], -1).contiguous()

    def make() -> Prepared:
        codes = packed.clone()
        scales = scales_and_zeros.clone()

        def run(x: Tensor) -> Tensor:
            return torch._weight_int4pack_mm_for_cpu(x, codes, GROUP, scales)

        return Prepared(run, codes.nbytes + scales.nbytes)

    yield repeated("torch int4 bf16", make, x.bfloat16(), meaning.double(), 1e-2)


def _bitsandbytes(weight: Tensor, x: Tensor) -> Iterator[Candidate]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bitsandbytes

    def layer() -> Any:
        linear = bitsandbytes.nn.Linear4bit(
            weight.shape[1],
            weight.shape[0],
            bias=False,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            compress_statistics=False,
        )
        linear.load_state_dict({"weight": weight.bfloat16()})
        return linear.to("cpu").eval()

    def make() -> Prepared:
        linear = layer()

        def run(x: Tensor) -> Tensor:
            with torch.inference_mode():
                return linear(x)

        return Prepared(run, linear.weight.nbytes + linear.weight.quant_state.absmax.nbytes)

    stored = layer().weight
    meaning = bitsandbytes.functional.dequantize_4bit(stored.data, stored.quant_state)
    yield repeated("bitsandbytes nf4 bf16", make, x.bfloat16(), meaning.double(), 3e-2)


class _Init(ctypes.Structure):
    """`ggml_init_params`."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_POINTER = ctypes.c_void_p
_INT = ctypes.c_int
_I64 = ctypes.c_int64
# name: (type of the result, types of the arguments), as in ggml.h
_GGML_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "init": (_POINTER, (_Init,)),
    "new_tensor_2d": (_POINTER, (_POINTER, _INT, _I64, _I64)),
    "mul_mat": (_POINTER, (_POINTER, _POINTER, _POINTER)),
    "new_graph": (_POINTER, (_POINTER,)),
    "build_forward_expand": (None, (_POINTER, _POINTER)),
    "graph_compute_with_ctx": (_INT, (_POINTER, _POINTER, _INT)),
    "get_data": (_POINTER, (_POINTER,)),
    "quantize_chunk": (
        ctypes.c_size_t,
        (_INT, _POINTER, _POINTER, _I64, _I64, _I64, _POINTER),
    ),
    "row_size": (ctypes.c_size_t, (_INT, _I64)),
}


def _ggml_library() -> Any:
    package = find_spec("xllamacpp")
    if package is None or not package.submodule_search_locations:
        raise ImportError("xllamacpp is not installed")
    folder = Path(package.submodule_search_locations[0])
    library = ctypes.CDLL(str(next(folder.glob("xllamacpp*.so"))))
    for name, (result, arguments) in _GGML_FUNCTIONS.items():
        function = getattr(library, f"ggml_{name}")
        function.restype = result
        function.argtypes = arguments
    return library


def _ggml(weight: Tensor, x: Tensor) -> Iterator[Candidate]:
    library = _ggml_library()
    columns = weight.shape[1]
    if columns % GGML_BLOCK:
        raise RuntimeError(f"its blocks have 256 inputs, which do not divide {columns}")
    for name, kind in GGML_TYPES.items():
        yield _ggml_candidate(library, name, kind, weight, x)


def _ggml_candidate(library: Any, name: str, kind: int, weight: Tensor, x: Tensor) -> Candidate:
    from gguf.quants import GGMLQuantizationType, dequantize

    out, columns = weight.shape
    rows = x.shape[0]
    nbytes = library.ggml_row_size(kind, columns) * out
    codes = torch.empty(nbytes, dtype=torch.uint8)
    library.ggml_quantize_chunk(kind, weight.data_ptr(), codes.data_ptr(), 0, out, columns, None)
    values = dequantize(codes.view(out, -1).numpy(), GGMLQuantizationType(kind))
    meaning = torch.from_numpy(values).double()
    graphs = [_ggml_graph(library, kind, codes, x, out) for _ in range(copies_of(nbytes))]

    def run(copy: int) -> Tensor:
        context, graph, product = graphs[copy]
        library.ggml_graph_compute_with_ctx(context, graph, torch.get_num_threads())
        y = torch.empty(rows, out)
        ctypes.memmove(y.data_ptr(), library.ggml_get_data(product), y.nbytes)
        return y

    return Candidate(
        f"ggml {name} fp32",
        8 * nbytes / weight.numel(),
        nbytes,
        len(graphs),
        run,
        x.double() @ meaning.T,
        2e-2,
        size=usual_size(x.double(), meaning),
    )


def _ggml_graph(library: Any, kind: int, codes: Tensor, x: Tensor, out: int) -> tuple[Any, ...]:
    """A context that holds the weight's codes and x, the graph of their product, and its result."""
    rows, columns = x.shape
    size = codes.nbytes + x.nbytes + 4 * rows * out + GGML_WORKSPACE
    context = library.ggml_init(_Init(size, None, False))
    stored = library.ggml_new_tensor_2d(context, kind, columns, out)
    inputs = library.ggml_new_tensor_2d(context, GGML_FLOAT32, columns, rows)
    ctypes.memmove(library.ggml_get_data(stored), codes.data_ptr(), codes.nbytes)
    ctypes.memmove(library.ggml_get_data(inputs), x.data_ptr(), x.nbytes)
    product = library.ggml_mul_mat(context, stored, inputs)
    graph = library.ggml_new_graph(context)
    library.ggml_build_forward_expand(graph, product)
    return context, graph, product
