"""Rotated binary weights mean B T diag(s), and what they store is counted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.errors import StoreError
from qbench.formats import RotatedBinary, bits_per_weight, from_tensors
from qbench.formats.hadamard import block_length, sylvester
from qbench.formats.rotated_binary import rotated, rotated_back
from qbench.kernels.samples import random_binary, random_rotated
from samples import normal


def transform(n):
    """T (n, n) float64, written out."""
    block = block_length(n)
    return torch.block_diag(*[sylvester(block, torch.float64, torch.device("cpu"))] * (n // block))


@settings(deadline=None, max_examples=30)
@given(
    bits=st.integers(1, 4),
    columns=st.sampled_from([8, 24, 64, 96, 192, 576]),
    seed=st.integers(0, 99),
    scale_bits=st.sampled_from([6, 16]),
)
def test_it_is_a_coding_between_a_transform_and_signs(bits, columns, seed, scale_bits):
    coding = random_binary((5, columns), bits, 8, seed, scale_bits=scale_bits)
    s = torch.randn(columns, generator=torch.Generator().manual_seed(seed)).sign()
    weight = RotatedBinary.from_coding(coding, s)
    expected = coding.dequantize().double() @ transform(columns) * s
    torch.testing.assert_close(weight.dequantize().double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(weight.s(), s) and weight.shape == (5, columns) and weight.bits == bits
    again = from_tensors(weight.format, weight.to_tensors(), weight.spec())
    assert torch.equal(again.dequantize(), weight.dequantize())
    stored = bits_per_weight([weight])
    assert stored["total"] == pytest.approx(bits_per_weight([coding])["total"] + stored["signs"])
    assert stored["signs"] == pytest.approx(1 / 5)


def test_a_rotation_keeps_products_and_lengths():
    W, x, s = normal(6, 96), normal(7, 96, seed=1), normal(96, seed=2).sign()
    torch.testing.assert_close(rotated(W, s) @ rotated(x, s).T, W @ x.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotated_back(rotated(W, s), s), W, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rotated(W, s).norm(dim=1), W.norm(dim=1))


@pytest.mark.parametrize("part, change", [("signs", torch.zeros(3, dtype=torch.uint8)), ("b", 8)])
def test_parts_that_do_not_fit_are_refused(part, change):
    weight = random_rotated((4, 64), 2, 32)
    tensors, spec = weight.to_tensors(), weight.spec()
    if part == "signs":
        tensors["signs"] = change
    else:
        spec["block"] = change
    with pytest.raises(StoreError, match="signs|Hadamard blocks of 8 do not fit"):
        from_tensors(weight.format, tensors, spec)
    with pytest.raises(StoreError, match="cannot be built"):
        from_tensors(weight.format, {**weight.coding.to_tensors()}, weight.spec())
