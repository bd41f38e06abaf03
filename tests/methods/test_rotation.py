"""Rotated codings: the problem that is solved is the same one, in other coordinates."""

from __future__ import annotations

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.contracts import LinearStats
from qbench.formats import RotatedBinary
from qbench.formats.rotated_binary import rotated
from qbench.kernels import dispatch
from qbench.kernels.cpu import library
from qbench.methods.rotation import input_signs, rotated_stats
from samples import normal, token_ids

CHANNEL = Scheme(2)


@pytest.fixture
def weight():
    """(24, 96), Gaussian but for a few values in each row, which a rotation spreads."""
    weight = normal(24, 96)
    weight[:, ::13] *= 8
    return weight


@pytest.fixture
def stats():
    x = normal(400, 12, seed=1) @ normal(12, 96, seed=2) + normal(400, 96, seed=3)
    return LinearStats(2 / 400 * x.T @ x, 400)


def loss(found, weight, stats):
    """tr(dW H dW^T)."""
    change = (found.dequantize() - weight).double()
    return ((change @ stats.hessian.double()) * change).sum().item()


def test_alternating_codes_the_rotated_weight(weight):
    made = qbench.get_method("alternating", rotate=True).quantize_weight(weight, CHANNEL)
    plain = qbench.get_method("alternating")
    s = input_signs(weight)
    coded = plain.quantize_weight(rotated(weight, s), CHANNEL)
    assert isinstance(made, RotatedBinary) and torch.equal(made.s(), s)
    assert torch.equal(made.coding.planes, coded.planes)
    # Four levels serve a Gaussian row better than one with outliers.
    errors = [
        (found.dequantize() - weight).square().sum()
        for found in (made, plain.quantize_weight(weight, CHANNEL))
    ]
    assert errors[0] < 0.75 * errors[1]


@pytest.mark.parametrize("scheme", [Scheme(2), Scheme(3, 32)])
def test_the_loss_is_the_same_in_both_coordinates(weight, stats, scheme):
    made = qbench.get_method("alternating-h", rotate=True).quantize_linear(weight, stats, scheme)
    s = input_signs(weight)
    turned = loss(made.coding, rotated(weight, s), rotated_stats(stats, s))
    assert loss(made, weight, stats) == pytest.approx(turned, rel=1e-4)
    # Feedback in the rotated Hessian is far better than the same codes without it.
    alone = qbench.get_method("alternating", rotate=True).quantize_weight(weight, scheme)
    assert loss(made, weight, stats) < 0.8 * loss(alone, weight, stats)


@pytest.mark.parametrize("method", ["uniquanf", "flexbcq"])
def test_what_is_trained_is_what_is_stored(weight, stats, method):
    trained = qbench.get_method(method, rotate=True).prepare(weight, CHANNEL, stats)
    output = trained()
    stored = trained.export().dequantize()
    torch.testing.assert_close(output, stored, rtol=1e-3, atol=1e-3 * weight.abs().max().item())
    (output * normal(24, 96, seed=3)).sum().backward()
    for group in trained.groups():
        for parameter in group["params"]:
            assert parameter.grad.abs().max() > 0
    start = qbench.get_method("alternating-h", rotate=True, rounds=15)
    expected = start.quantize_linear(weight, stats, CHANNEL)
    torch.testing.assert_close(stored, expected.dequantize(), rtol=1e-2, atol=1e-2)
    trained.products = torch.bfloat16
    assert trained().dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["alternating", "alternating-h", "uniquanf"])
def test_a_rotated_model_is_saved_loaded_and_computes_packed(tiny, tmp_path, method):
    tokens = token_ids(8, 16, vocabulary=259)
    made = qbench.quantize(
        tiny(), qbench.get_method(method, rotate=True), Scheme(2, 32), tokens, tokenizer=None
    )
    assert made.bits_per_weight["signs"] > 0
    made.save(tmp_path / "model")
    loaded = qbench.load(tmp_path / "model")
    assert loaded.bits_per_weight == made.bits_per_weight
    expected = made.model(tokens).logits
    if library.unavailable() is None:
        dispatch.served(clear=True)
        loaded.model(tokens)
        assert dispatch.served() == {"rotated": 14}
    torch.testing.assert_close(loaded.model(tokens).logits, expected, rtol=1e-3, atol=1e-3)
    dense = qbench.load(tmp_path / "model", packed=False)
    torch.testing.assert_close(dense.model(tokens).logits, expected, rtol=1e-4, atol=1e-4)
