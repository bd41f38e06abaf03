"""Other programs' products with quantized weights on the CPU, as candidates of `qbench.latency.timing`; each where installed.

torch int4    `aten::_weight_int4pack_mm_for_cpu`, bfloat16 x, groups of 128, in torch itself
bitsandbytes  NF4, blocks of 64, bfloat16 x
ggml          Q2_K, Q3_K, Q4_K with float32 x, through the library inside the wheel of xllamacpp; it rounds x to 8 bits
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

from qbench.latency.timing import Candidate, Shape, collect, copies_of

_GGML_TYPES = {"Q2_K": 10, "Q3_K": 11, "Q4_K": 12}


def peers(shape: Shape) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates, and for each peer that is not among them the reason."""
    x = torch.randn(shape.rows, shape.columns, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(shape.out, shape.columns, generator=torch.Generator().manual_seed(2)).div_(
        shape.columns**0.5
    )
    kinds: dict[str, Callable[[Tensor, Tensor], Iterator[Candidate]]] = {
        "torch int4": _torch_int4,
        "bitsandbytes": _bitsandbytes,
        "ggml": _ggml,
    }
    return collect({name: partial(make, weight, x) for name, make in kinds.items()})


def _torch_int4(weight: Tensor, x: Tensor) -> Iterator[Candidate]:
    groups = weight.unflatten(1, (-1, 128))
    low = groups.amin(-1)
    scale = ((groups.amax(-1) - low) / 15).bfloat16()
    codes = (
        ((groups - low[..., None]) / scale[..., None].float()).round().clamp(0, 15).to(torch.int32)
    )
    zero = (low + 8 * scale.float()).bfloat16()  # w = (code - 8) * scale + zero
    plain = ((codes.float() - 8) * scale.float()[..., None] + zero.float()[..., None]).flatten(1)
    packed = torch._convert_weight_to_int4pack_for_cpu(codes.flatten(1), 1)
    scales = torch.stack([scale.T, zero.T], -1).contiguous()
    given, nbytes = x.bfloat16(), packed.nbytes + scales.nbytes
    weights = [(packed.clone(), scales.clone()) for _ in range(copies_of(nbytes))]

    def run(i: int) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(given, weights[i][0], 128, weights[i][1])

    expected = given.double() @ plain.double().T
    yield Candidate(
        "torch int4 bf16", 8 * nbytes / weight.numel(), nbytes, len(weights), run, expected, 1e-2
    )


def _bitsandbytes(weight: Tensor, x: Tensor) -> Iterator[Candidate]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bitsandbytes

    layers: list[Any] = []
    for _ in range(copies_of(weight.numel() * 9 // 16)):
        kind = {"compute_dtype": torch.bfloat16, "quant_type": "nf4", "compress_statistics": False}
        layer = bitsandbytes.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, **kind)
        layer.load_state_dict({"weight": weight.bfloat16()})
        layers.append(layer.to("cpu").eval())
    state = layers[0].weight.quant_state
    nbytes = layers[0].weight.nbytes + state.absmax.nbytes
    plain = bitsandbytes.functional.dequantize_4bit(layers[0].weight.data, state)
    given = x.bfloat16()

    def run(i: int) -> Tensor:
        with torch.inference_mode():
            return layers[i](given)

    expected = given.double() @ plain.double().T
    yield Candidate(
        "bitsandbytes nf4 bf16",
        8 * nbytes / weight.numel(),
        nbytes,
        len(layers),
        run,
        expected,
        3e-2,
    )


class _Init(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def _ggml_library() -> Any:
    package = find_spec("xllamacpp")
    if package is None or not package.submodule_search_locations:
        raise ImportError("xllamacpp is not installed")
    library = ctypes.CDLL(
        str(next(Path(package.submodule_search_locations[0]).glob("xllamacpp*.so")))
    )
    pointer, i64, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    for name, result, *arguments in (
        ("init", pointer, _Init),
        ("new_tensor_2d", pointer, pointer, ctypes.c_int, i64, i64),
        ("mul_mat", pointer, pointer, pointer, pointer),
        ("new_graph", pointer, pointer),
        ("build_forward_expand", None, pointer, pointer),
        ("graph_compute_with_ctx", ctypes.c_int, pointer, pointer, ctypes.c_int),
        ("get_data", pointer, pointer),
        ("quantize_chunk", size, ctypes.c_int, pointer, pointer, i64, i64, i64, pointer),
        ("row_size", size, ctypes.c_int, i64),
    ):
        function = getattr(library, f"ggml_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _ggml(weight: Tensor, x: Tensor) -> Iterator[Candidate]:
    from gguf.quants import GGMLQuantizationType, dequantize

    library = _ggml_library()
    (out, columns), rows = weight.shape, x.shape[0]
    if columns % 256:
        raise RuntimeError(f"its blocks have 256 inputs, which do not divide {columns}")
    for name, kind in _GGML_TYPES.items():
        nbytes = library.ggml_row_size(kind, columns) * out
        codes = torch.empty(nbytes, dtype=torch.uint8)
        library.ggml_quantize_chunk(
            kind, weight.data_ptr(), codes.data_ptr(), 0, out, columns, None
        )
        plain = torch.from_numpy(
            dequantize(codes.view(out, -1).numpy(), GGMLQuantizationType(kind))
        )
        graphs = []
        for _ in range(copies_of(nbytes)):
            context = library.ggml_init(
                _Init(nbytes + x.nbytes + 4 * rows * out + (64 << 20), None, False)
            )
            a = library.ggml_new_tensor_2d(context, kind, columns, out)
            b = library.ggml_new_tensor_2d(context, 0, columns, rows)
            ctypes.memmove(library.ggml_get_data(a), codes.data_ptr(), nbytes)
            ctypes.memmove(library.ggml_get_data(b), x.data_ptr(), x.nbytes)
            product, graph = library.ggml_mul_mat(context, a, b), library.ggml_new_graph(context)
            library.ggml_build_forward_expand(graph, product)
            graphs.append((context, graph, product))

        def run(i: int, graphs: Any = graphs) -> Tensor:
            context, graph, product = graphs[i]
            library.ggml_graph_compute_with_ctx(context, graph, torch.get_num_threads())
            y = torch.empty(rows, out)
            ctypes.memmove(y.data_ptr(), library.ggml_get_data(product), y.nbytes)
            return y

        expected = x.double() @ plain.double().T
        yield Candidate(
            f"ggml {name} fp32",
            8 * nbytes / weight.numel(),
            nbytes,
            len(graphs),
            run,
            expected,
            2e-2,
        )
