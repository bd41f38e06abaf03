"""What is derived from a weight serves that weight alone, whatever memory another one gets."""

from __future__ import annotations

import pytest
import torch

from qbench.kernels import dispatch
from qbench.kernels.description import description_of
from qbench.kernels.layouts import Layouts
from qbench.kernels.samples import MAKERS, STEPPED_MAKERS

WEIGHTS = MAKERS | {f"{kind}-stepped": make for kind, make in STEPPED_MAKERS.items()}


def placed(memory, part):
    """The values of a part as a new tensor at the place of the memory, a bytearray."""
    memory[: part.nbytes] = part.contiguous().view(torch.uint8).flatten().tolist()
    return torch.frombuffer(memory, dtype=part.dtype, count=part.numel()).view(part.shape)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_part_at_the_address_of_one_that_was_freed_is_another_part(kind):
    x = torch.randn(2, 64)
    weight, other = (WEIGHTS[kind]((40, 64), 3, 32, seed) for seed in (0, 1))
    for name in weight.to_tensors():
        memory = bytearray(1 << 16)
        for source in (weight, other, weight):
            parts = weight.to_tensors() | {name: source.to_tensors()[name]}
            expected = type(weight).from_tensors(parts, weight.spec()).dequantize()
            parts[name] = placed(memory, parts[name])
            product = dispatch.linear(x, type(weight).from_tensors(parts, weight.spec()))
            torch.testing.assert_close(product, x @ expected.T)
            del parts


def test_a_layout_is_derived_once():
    derived = []
    layouts = Layouts(lambda weight: derived.append(weight))
    weight = WEIGHTS["binary"]((40, 64), 3, 32, 0)
    parts = list(weight.to_tensors().values())
    for tensors in (parts, [part.detach() for part in parts], list(parts)):
        layouts.of(tensors, description_of(weight))
    assert len(derived) == 1
