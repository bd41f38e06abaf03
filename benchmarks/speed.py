"""The CPU kernels and the quantizers, timed by pytest-benchmark.

    make speed, and then make speed COMPARE=0001

Kernels take turns with reading 64 MiB of memory, everything else with a dense float32 product.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from reconstruction import step_of

import qbench
from qbench import Scheme
from qbench.checkpoint.packed_linear import QuantLinear
from qbench.contracts import LinearStats
from qbench.kernels.cpu import products as cpu
from qbench.kernels.registry import get_kernel
from qbench.kernels.samples import random_binary, random_uniform
from qbench.latency.candidates import kernel_candidate
from qbench.latency.cpu import reader
from qbench.methods.levels import nearest

torch.set_num_threads(1)
SHAPE = (1536, 576)


@pytest.fixture(scope="module")
def multiply() -> Callable[[], object]:
    x = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    return lambda: x @ x


@pytest.fixture(scope="module")
def read() -> Callable[[], object]:
    probe = reader(64 << 20)
    return lambda: probe.run(0)


@pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", ["exact", "fast", "uniform"])
def test_product(in_turns, read, kind, bits, rows):
    make = random_uniform if kind == "uniform" else random_binary
    weight = make((4096, 4096), bits, 128)
    kernel = get_kernel("cpu-binary-fast" if kind == "fast" else "cpu-binary")
    x = torch.randn(rows, 4096, generator=torch.Generator().manual_seed(1)).bfloat16()
    candidate = kernel_candidate(kernel, weight, x, bits)
    copies = itertools.cycle(range(candidate.copies))
    in_turns(lambda: candidate.run(next(copies)), read)


@pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
@pytest.mark.parametrize("shape", [(4096, 4096), SHAPE])
def test_a_layer_with_scales_as_integers(in_turns, shape):
    """Its yardstick is the same layer with scales in half precision, whose layout it shares."""
    stepped, half = (
        QuantLinear(random_binary(shape, 3, 64, scale_bits=scale_bits), None)
        for scale_bits in (7, 16)
    )
    x = torch.randn(1, shape[1], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        in_turns(lambda: stepped(x), lambda: half(x), 200)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", ["rtn", "greedy", "alternating"])
def test_quantizing_a_weight(in_turns, multiply, name, bits):
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    method = qbench.get_method(name)
    in_turns(lambda: method.quantize_weight(weight, Scheme(bits, 64)), multiply, 15)


@pytest.mark.parametrize("name", ["gptq"])
def test_quantizing_a_layer(in_turns, multiply, name):
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(SHAPE, generator=draw), torch.randn(2048, SHAPE[1], generator=draw)
    stats = LinearStats(hessian=2 / len(x) * x.T @ x, count=len(x))
    method = qbench.get_method(name)
    in_turns(lambda: method.quantize_linear(weight, stats, Scheme(3, 64)), multiply, 15)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_mapping_weights_to_levels(in_turns, multiply, bits):
    draw = torch.Generator().manual_seed(0)
    levels, y = torch.randn(13824, 2**bits, generator=draw), torch.randn(13824, 64, generator=draw)
    in_turns(lambda: nearest(y, levels), multiply)


@pytest.mark.parametrize("name", ["flexround", "uniquanf"])
def test_a_training_step(in_turns, multiply, name):
    in_turns(step_of(name, 3), multiply, 6)
