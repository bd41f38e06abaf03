"""Other programs' products with quantized weights on a GPU, as candidates; each where installed.

torch int4     `aten::_weight_int4pack_mm`, groups of 128, in torch itself
gemlite int4   GemLiteLinear, groups of 128
bitsandbytes   NF4, blocks of 64

x is bfloat16 in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from qbench.kernels.contract import Prepared
from qbench.latency.candidates import random_matrix, repeated
from qbench.latency.gpu import graph_clock
from qbench.latency.timing import Candidate, Shape, collect

GROUP = 128
LIMIT = 3e-2  # of the relative error, against the weight as the program itself stores it

# A copy of the program's weight at each call, and the float64 weight (out, in) that it stands for.
Packed = tuple[Callable[[], Prepared], Tensor]


def peers(shape: Shape) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates, and for each program that is not among them the reason."""
    x = random_matrix(shape.rows, shape.columns, 1, "cuda").bfloat16()
    weight = random_matrix(shape.out, shape.columns, 2, "cuda")
    programs = {
        "torch int4": _torch_int4,
        "gemlite int4": _gemlite,
        "bitsandbytes nf4": _bitsandbytes,
    }
    makers = {}
    for name, pack in programs.items():
        makers[name] = partial(_candidates, name, pack, weight, x)
    return collect(makers)


def _candidates(
    name: str, pack: Callable[[Tensor], Packed], weight: Tensor, x: Tensor
) -> Iterator[Candidate]:
    make, meaning = pack(weight)
    candidate = repeated(f"{name} bf16", make, x, meaning, LIMIT)
    graph_clock(candidate)(0)  # what no graph can capture is not timed
    yield candidate


def _codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (out, in) -> codes (out, in) int32 in 0..15, scale (out, in/128) bfloat16.

    w = (code - 8) scale.
    """
    groups = weight.unflatten(1, (-1, GROUP))  # (out, groups, 128)
    scale = (groups.abs().amax(-1) / 7).bfloat16()
    codes = (groups / scale.float()[..., None]).round().clamp(-8, 7).to(torch.int32) + 8
    return codes.flatten(1), scale


def _meaning(codes: Tensor, scale: Tensor) -> Tensor:
    """The weight (out, in) float64 that `_codes` describes."""
    centred = codes.unflatten(1, (-1, GROUP)) - 8
    return (centred * scale.double()[..., None]).flatten(1)


def _torch_int4(weight: Tensor) -> Packed:
    codes, scale = _codes(weight)
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    scales_and_zeros = torch.stack([scale.T, torch.zeros_like(scale.T)], -1).contiguous()

    def make() -> Prepared:
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
        scales = scales_and_zeros.clone()

        def run(x: Tensor) -> Tensor:
            return torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, scales)

        return Prepared(run, packed.nbytes + scales.nbytes)

    return make, _meaning(codes, scale)


def _gemlite(weight: Tensor) -> Packed:
    from gemlite.core import DType, GemLiteLinear

    codes, scale = _codes(weight)
    out, columns = weight.shape
    scales = scale.reshape(-1, 1)
    zeros = torch.full_like(scales, 8.0)

    def make() -> Prepared:
        layer = GemLiteLinear(
            4, GROUP, columns, out, input_dtype=DType.BF16, output_dtype=DType.BF16
        )
        layer.pack(codes.to(torch.uint8), scales.clone(), zeros.clone(), None)
        return Prepared(layer, codes.numel() // 2 + 2 * scales.nbytes)

    return make, _meaning(codes, scale)


def _bitsandbytes(weight: Tensor) -> Packed:
    from bitsandbytes import functional, matmul_4bit

    def quantized() -> tuple[Tensor, functional.QuantState]:
        return functional.quantize_4bit(weight.bfloat16(), blocksize=64, quant_type="nf4")

    def make() -> Prepared:
        codes, state = quantized()

        def run(x: Tensor) -> Tensor:
            return matmul_4bit(x, codes.t(), state)

        return Prepared(run, codes.nbytes + state.absmax.nbytes)

    return make, functional.dequantize_4bit(*quantized()).double()
