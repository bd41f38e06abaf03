"""Scales as integers, fitted among those that can be stored."""

from __future__ import annotations

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.formats import Binary, bits_per_weight
from qbench.formats.snapping import stored_coding
from qbench.formats.stepped import Stepped, values
from qbench.methods.alternating import Alternating
from qbench.methods.levels import nearest_planes
from qbench.methods.storable import storable_coding
from samples import normal

GROUP = 64


def tailed(rows=32):
    """Weights of long tails, whose best alphas are far from half of the one before."""
    return normal(rows, 576) * normal(rows, 576, seed=3).abs()


def codings(weight, bits, **params):
    """What `alternating` finds, as `storable_coding` takes it."""
    found = []
    for alpha, shift in Alternating(**params).fits(weight.reshape(-1, GROUP), bits):
        found.append((alpha.view(len(weight), -1, bits), shift.view(len(weight), -1)))
    return found


def coded(weight, alpha, shift):
    a = values(alpha).float().flatten(0, 1)
    s = torch.zeros_like(a[:, 0]) if shift is None else values(shift).float().flatten()
    planes = nearest_planes(weight.reshape(-1, GROUP), a, s)
    return Binary.from_planes(planes.view(-1, *weight.shape), alpha, shift)


def error(found, weight):
    return (found - weight).double().square().sum().item()


def binary_error(weight, bits, scale_bits, **params):
    method = qbench.get_method("alternating", scale_bits=scale_bits, **params)
    return error(method.quantize_weight(weight, Scheme(bits, GROUP)).dequantize(), weight)


def unified_error(weight, bits, scale_bits):
    method = qbench.get_method("uniquanf", initialization="unified", scale_bits=scale_bits)
    with torch.no_grad():
        return error(method.prepare(weight, Scheme(bits, GROUP))(), weight)


@pytest.mark.parametrize(
    "bits, scale_bits, most",
    [(2, 6, 0.007), (3, 7, 0.008), (4, 8, 0.08)],  # the nearest numbers: 0.011, 0.017, 0.137
)
def test_integers_cost_little_where_alphas_are_no_halves(bits, scale_bits, most):
    weight = tailed()
    for measure in (binary_error, unified_error):
        assert measure(weight, bits, scale_bits) < measure(weight, bits, 16) * (1 + most)
    without = [binary_error(weight, bits, n, shift=False) for n in (scale_bits, 16)]
    assert without[0] < without[1] * (1 + most + 0.01)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_no_row_is_worse_than_with_the_nearest_numbers_and_none_takes_more_bits(bits, shifted):
    weight = tailed()
    found = codings(weight, bits, shift=shifted)
    alpha, shift = found[0]
    nearest = coded(weight, *stored_coding(alpha, shift if shifted else None, 8))
    ours = coded(weight, *storable_coding(weight, found, 8, shifted))
    assert bits_per_weight([ours])["total"] == bits_per_weight([nearest])["total"]
    assert isinstance(storable_coding(weight, found, 8, shifted)[0], Stepped)
    errors = [(w.dequantize() - weight).square().sum(1) for w in (ours, nearest)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_no_single_step_of_a_lone_number_lowers_the_error_much():
    weight = tailed(8)
    alpha, shift = storable_coding(weight, codings(weight, 3), 7)
    least = error(coded(weight, alpha, shift).dequantize(), weight)
    step = (alpha.span.float() * 2.0**-alpha.places)[:, None]
    for number in range(3):
        for sign in (1, -1):
            moved = values(alpha).float()
            moved[..., number] += sign * step
            other = coded(weight, moved.clamp_min(0), values(shift).float()).dequantize()
            group_errors = [
                (w - weight).square().view(8, -1, GROUP).sum(2)
                for w in (other, coded(weight, alpha, shift).dequantize())
            ]
            gained = (group_errors[1] - group_errors[0]).clamp_min(0).sum()
            assert gained < 0.02 * least


def test_half_precision_is_the_best_coding_as_it_is():
    weight = tailed(4)
    found = codings(weight, 3)
    for ours, plain in zip(
        storable_coding(weight, found, 16), stored_coding(*found[0], 16), strict=True
    ):
        assert torch.equal(ours, plain)
