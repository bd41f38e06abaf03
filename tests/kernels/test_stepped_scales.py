"""Scales as integers: every kernel reads the layout of the same numbers in half precision."""

from __future__ import annotations

import pytest
import torch

from qbench.formats import Binary, Uniform
from qbench.kernels.cpu import products as cpu
from qbench.kernels.cpu.library import ISAS, chosen_isa, unavailable
from qbench.kernels.gpu import triton_layout
from qbench.kernels.gpu.cuda import layout as cuda_layout
from qbench.kernels.samples import random_binary, random_uniform

SHAPE = (48, 512)


def in_halves(weight):
    """The same weight with tensors for scales, and zero points."""
    sizes = (weight.in_features, weight.group_size)
    if isinstance(weight, Binary):
        return Binary(weight.planes, weight.alpha, weight.shift, *sizes)
    return Uniform(weight.codes, weight.scale, weight.zero_point, weight.bits, *sizes)


def tensors_of(layout):
    return {name: part for name, part in vars(layout).items() if isinstance(part, torch.Tensor)}


WEIGHTS = {
    "binary": random_binary(SHAPE, 3, 32, scale_bits=6),
    "binary without shift": random_binary(SHAPE, 2, 64, shift=False, scale_bits=8),
    "uniform": random_uniform(SHAPE, 4, 32, scale_bits=5),
    "uniform, real zero points": random_uniform(SHAPE, 3, 64, zero_points="real", scale_bits=6),
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_layouts_are_those_of_half_precision(weight):
    halves = in_halves(weight)
    stored = weight.to_tensors()
    assert any(part.endswith("_span") for part in stored)
    assert sum(part.nbytes for part in stored.values()) < sum(
        part.nbytes for part in halves.to_tensors().values()
    )
    for derive in (triton_layout.derive, cuda_layout.derive):
        found = tensors_of(derive(weight))
        expected = tensors_of(derive(halves))
        assert found.keys() == expected.keys() and len(found) >= 2
        for name, part in found.items():
            assert part.dtype == expected[name].dtype and torch.equal(part, expected[name])


@pytest.mark.skipif(unavailable() is not None, reason="the library of the CPU is not built")
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_the_layout_on_a_cpu_is_that_of_half_precision(weight):
    for isa in range(chosen_isa() + 1):
        found = cpu.Derived(weight, isa)
        expected = cpu.Derived(in_halves(weight), isa)
        assert torch.equal(found.memory, expected.memory), ISAS[isa]
