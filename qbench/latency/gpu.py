"""What `qbench.latency.timing` times on a GPU. A candidate's time is that of a CUDA graph over all copies of its weight.

The copies are four times the L2 cache together, and the time is divided by their number, so that
neither a warm cache nor what Python needs to launch a kernel is part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from qbench.errors import ConfigError
from qbench.kernels.gpu import products as gpu
from qbench.kernels.gpu.triton_layout import Planes, derive
from qbench.latency.timing import GIB, MAKERS, Candidate, Shape, collect

Made = tuple[
    Callable[[Tensor], Tensor], int
]  # a product with one copy of a weight, and the bytes of that copy


def require_gpu() -> None:
    """ConfigError where there is none, or no triton."""
    if (reason := gpu.unavailable()) is not None:
        raise ConfigError(f"--device cuda: {reason}; `--device cpu` times on the processor")


def graph_clock(candidate: Candidate) -> Callable[[int], float]:
    """Seconds of one product, by events around one replay; the copies are all in the graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(min(3, candidate.copies)):  # compiles, and allocates what libraries keep
            candidate.run(i)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(candidate.copies):
            candidate.run(i)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def elapsed(copy: int) -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / candidate.copies

    return elapsed


def probes() -> list[Candidate]:
    """A copy of 4 GiB, counted as what it reads and writes; products of order 8192 in bfloat16 and 4096 in float32."""
    source = torch.empty(4 * GIB, dtype=torch.uint8, device="cuda").fill_(1)
    target, done = torch.empty_like(source), torch.ones(1, dtype=torch.float64, device="cuda")

    def copy(i: int) -> Tensor:
        target.copy_(source)
        return done

    found = [Candidate("copy", 8, 2 * source.nbytes, 1, copy, done, 0.0)]
    for name, dtype, order, limit in (
        ("bf16", torch.bfloat16, 8192, 1e-2),
        ("fp32", torch.float32, 4096, 1e-4),
    ):
        x = torch.randn(order, order, device="cuda", dtype=dtype)
        multiply, expected = partial(lambda x, i: x @ x, x), x.double() @ x.double()
        found.append(
            Candidate(f"multiply {name}", 0, x.nbytes, 1, multiply, expected, limit, 2 * order**3)
        )
    return found


def candidates(
    shape: Shape, bits: Iterable[int], group_size: int, formats: Sequence[str] = ("binary",)
) -> list[Candidate]:
    """Dense products, and ours for every width, with bfloat16 x."""
    x, plain = _random(shape.rows, shape.columns, 1), _random(shape.out, shape.columns, 2)
    found = []
    for name, dtype, limit in (("fp32", torch.float32, 1e-4), ("bf16", torch.bfloat16, 1e-2)):
        weight, given = plain.to(dtype), x.to(dtype)
        make = partial(_dense, weight)
        found.append(_candidate(f"dense {name}", make, given, weight.double(), limit))
    for width in bits:
        for kind in formats:
            packed = MAKERS[kind](shape, width, group_size)
            planes = derive(packed)
            assert isinstance(planes, Planes)  # what the formats that can be asked for have
            make, expected = partial(_planes, planes), packed.dequantize().cuda().double()
            found.append(_candidate(f"{kind} {width}b bf16", make, x.bfloat16(), expected, 1e-2))
    return found


def peers(shape: Shape) -> tuple[list[Candidate], dict[str, str]]:
    """torch's int4, gemlite's and bitsandbytes' products, bfloat16, groups of 128 (NF4: blocks of 64); or why not."""
    x, plain = (
        _random(shape.rows, shape.columns, 1).bfloat16(),
        _random(shape.out, shape.columns, 2),
    )

    def one(
        name: str, quantized: Callable[[Tensor], tuple[Callable[[], Made], Tensor]]
    ) -> Iterator[Candidate]:
        make, meant = quantized(plain)
        found = _candidate(f"{name} bf16", make, x, meant, 3e-2)
        graph_clock(found)(0)  # what no graph can capture is not timed
        yield found

    kinds = {"torch int4": _torch_int4, "gemlite int4": _gemlite, "bitsandbytes nf4": _bitsandbytes}
    return collect({name: partial(one, name, make) for name, make in kinds.items()})


def _random(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(
        rows, columns, generator=torch.Generator("cuda").manual_seed(seed), device="cuda"
    )


def _candidate(
    name: str, make: Callable[[], Made], x: Tensor, weight: Tensor, limit: float
) -> Candidate:
    """With as many copies as four times the L2 cache holds, 2 to 64; weight (out, in) float64 is what it stands for."""
    products: list[Callable[[Tensor], Tensor]] = []
    size = 0
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    while len(products) < 2 or (len(products) < 64 and len(products) * size < 4 * cache):
        product, size = make()
        products.append(product)
    run = lambda i: products[i](x)  # noqa: E731
    return Candidate(
        name, 8 * size / weight.numel(), size, len(products), run, x.double() @ weight.T, limit
    )


def _dense(weight: Tensor) -> Made:
    copy = weight.clone()
    return lambda x: linear(x, copy), copy.nbytes


def _planes(planes: Planes) -> Made:
    there = planes.to("cuda")
    return lambda x: gpu.product(x, there), there.nbytes


def _codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> codes (out, in) int32 in 0..15 and scale (out, in/128): w = (code - 8) scale."""
    groups = weight.unflatten(1, (-1, 128))
    scale = (groups.abs().amax(-1) / 7).bfloat16()
    codes = (groups / scale.float()[..., None]).round().clamp(-8, 7).to(torch.int32) + 8
    return codes.flatten(1), scale


def _meant(codes: Tensor, scale: Tensor) -> Tensor:
    return ((codes.unflatten(1, (-1, 128)) - 8) * scale.double()[..., None]).flatten(1)


def _torch_int4(weight: Tensor) -> tuple[Callable[[], Made], Tensor]:
    codes, scale = _codes(weight)
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    scales = torch.stack([scale.T, torch.zeros_like(scale.T)], -1).contiguous()

    def make() -> Made:
        packed, kept = torch.ops.aten._convert_weight_to_int4pack(pairs, 8), scales.clone()
        run = lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, 128, kept)  # noqa: E731
        return run, packed.nbytes + kept.nbytes

    return make, _meant(codes, scale)


def _gemlite(weight: Tensor) -> tuple[Callable[[], Made], Tensor]:
    from gemlite.core import DType, GemLiteLinear

    codes, scale = _codes(weight)
    (out, columns), scales = weight.shape, scale.reshape(-1, 1)

    def make() -> Made:
        layer = GemLiteLinear(4, 128, columns, out, input_dtype=DType.BF16, output_dtype=DType.BF16)
        layer.pack(codes.to(torch.uint8), scales.clone(), torch.full_like(scales, 8.0), None)
        return layer, codes.numel() // 2 + 2 * scales.nbytes

    return make, _meant(codes, scale)


def _bitsandbytes(weight: Tensor) -> tuple[Callable[[], Made], Tensor]:
    from bitsandbytes import functional, matmul_4bit

    def quantized() -> tuple[Tensor, functional.QuantState]:
        return functional.quantize_4bit(weight.bfloat16(), blocksize=64, quant_type="nf4")

    def make() -> Made:
        codes, state = quantized()
        return lambda x: matmul_4bit(x, codes.t(), state), codes.nbytes + state.absmax.nbytes

    return make, functional.dequantize_4bit(*quantized()).double()
