"""Other programs' products with quantized weights on a GPU, as candidates; each where installed.

torch int4             `aten::_weight_int4pack_mm`, groups of 128, in torch itself
gemlite int2, 4, 8     GemLiteLinear, groups of 128
humming int2, 3, 4     HummingLayer of humming-kernels, groups of 128
bitsandbytes nf4       blocks of 64
bitsandbytes int8      a scale per channel; it rounds x to 8 bits, too

x is bfloat16 in all of them. What is not timed is listed with its reason, among it what a program
does not offer (`ABSENT`).
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
GEMLITE_BITS = (2, 4, 8)
HUMMING_BITS = (2, 3, 4)
ABSENT = {
    "gemlite int3": "gemlite packs codes of 1, 2, 4 and 8 bits",
    "marlin": "it comes with vllm and gptqmodel, which bring a torch of their own",
}

# A copy of the program's weight at each call, and the float64 weight (out, in) that it stands for.
Packed = tuple[Callable[[], Prepared], Tensor]
# The dense weight (out, in) -> what the program makes of it.
Pack = Callable[[Tensor], Packed]


def programs() -> dict[str, Pack]:
    """All that are tried, by the name of their row."""
    packs: dict[str, Pack] = {"torch int4": _torch_int4}
    for bits in GEMLITE_BITS:
        packs[f"gemlite int{bits}"] = partial(_gemlite, bits)
    for bits in HUMMING_BITS:
        packs[f"humming int{bits}"] = partial(_humming, bits)
    packs["bitsandbytes nf4"] = _bitsandbytes_nf4
    packs["bitsandbytes int8"] = _bitsandbytes_int8
    return packs


def peers(shape: Shape) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates, and for each program that is not among them the reason."""
    x = random_matrix(shape.rows, shape.columns, 1, "cuda").bfloat16()
    weight = random_matrix(shape.out, shape.columns, 2, "cuda")
    makers = {}
    for name, pack in programs().items():
        makers[name] = partial(_candidates, name, pack, weight, x)
    candidates, missing = collect(makers)
    return candidates, ABSENT | missing


def _candidates(name: str, pack: Pack, weight: Tensor, x: Tensor) -> Iterator[Candidate]:
    make, meaning = pack(weight)
    candidate = repeated(f"{name} bf16", make, x, meaning, LIMIT)
    candidate.error()  # before a graph is captured: a wrong one says so, whatever its graph does
    graph_clock(candidate)(0)  # what no graph can capture is not timed
    yield candidate


def _codes(weight: Tensor, bits: int = 4) -> tuple[Tensor, Tensor]:
    """weight (out, in) -> codes (out, in) int32 in 0..2^bits - 1, scale (out, in/128) bfloat16.

    w = (code - 2^(bits - 1)) scale.
    """
    middle = 2 ** (bits - 1)
    groups = weight.unflatten(1, (-1, GROUP))  # (out, groups, 128)
    scale = (groups.abs().amax(-1) / (middle - 0.5)).bfloat16()
    codes = (groups / scale.float()[..., None]).round().clamp(-middle, middle - 1)
    return codes.to(torch.int32).flatten(1) + middle, scale


def _meaning(codes: Tensor, scale: Tensor, bits: int = 4) -> Tensor:
    """The weight (out, in) float64 that `_codes` describes."""
    centred = codes.unflatten(1, (-1, GROUP)) - 2 ** (bits - 1)
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


def _gemlite(bits: int, weight: Tensor) -> Packed:
    from gemlite.core import DType, GemLiteLinear

    codes, scale = _codes(weight, bits)
    out, columns = weight.shape
    scales = scale.reshape(-1, 1)
    zeros = torch.full_like(scales, 2.0 ** (bits - 1))

    def make() -> Prepared:
        layer = GemLiteLinear(
            bits, GROUP, columns, out, input_dtype=DType.BF16, output_dtype=DType.BF16
        )
        layer.pack(codes.to(torch.uint8), scales.clone(), zeros.clone(), None)
        return Prepared(layer, codes.numel() * bits // 8 + 2 * scales.nbytes)

    return make, _meaning(codes, scale, bits)


def _humming(bits: int, weight: Tensor) -> Packed:
    from humming.layer import HummingLayer

    out, columns = weight.shape

    def layer() -> HummingLayer:
        config = {"dtype": f"uint{bits}", "group_size": GROUP}
        return HummingLayer(out, columns, config, torch_dtype=torch.bfloat16).cuda()

    first = layer()
    schema = first.weight_schema
    tensors = type(schema).quant_tensor(weight.bfloat16(), schema, torch.bfloat16)
    meaning = schema.dequant_tensors(tensors).double()

    def make() -> Prepared:
        own = layer()
        own.load_from_tensors({name: tensor.clone() for name, tensor in tensors.items()})
        own.transform()
        return Prepared(own, sum(parameter.nbytes for parameter in own.parameters()))

    return make, meaning


def _bitsandbytes_nf4(weight: Tensor) -> Packed:
    from bitsandbytes import functional, matmul_4bit

    def quantized() -> tuple[Tensor, functional.QuantState]:
        return functional.quantize_4bit(weight.bfloat16(), blocksize=64, quant_type="nf4")

    def make() -> Prepared:
        codes, state = quantized()

        def run(x: Tensor) -> Tensor:
            return matmul_4bit(x, codes.t(), state)

        return Prepared(run, codes.nbytes + state.absmax.nbytes)

    return make, functional.dequantize_4bit(*quantized()).double()


def _bitsandbytes_int8(weight: Tensor) -> Packed:
    from bitsandbytes import MatmulLtState, functional, matmul

    codes, scale, _ = functional.int8_vectorwise_quant(weight.half())  # scale: of 127 steps

    def make() -> Prepared:
        state = MatmulLtState()
        state.CB = codes.clone()
        state.SCB = scale.clone()
        state.has_fp16_weights = False
        state.threshold = 0.0

        def run(x: Tensor) -> Tensor:
            return matmul(x, state.CB, state=state)

        return Prepared(run, codes.nbytes + scale.nbytes)

    return make, codes.double() * (scale.double()[:, None] / 127)
