"""Scales as integers: they mean what they say, are stored as they were seen, and cost what is said.

The reference of a snapped row is written out: every number is a whole number of one step, and no
span that cuts nothing off is better.
"""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.errors import ConfigError, StoreError
from qbench.formats import Binary, Uniform, bits_per_weight, from_tensors
from qbench.formats.packing import as_stored
from qbench.formats.snapping import (
    check_scale_bits,
    coding_bits,
    stored_coding,
    stored_scale,
    stored_zero_points,
)
from qbench.formats.stepped import Stepped, values
from samples import integers, normal, scales, seeded

WIDTHS = st.one_of(st.integers(1, 8), st.lists(st.integers(1, 8), min_size=1, max_size=4))


def coding(out=6, groups=9, planes=3, seed=0):
    """alpha (out, groups, planes), the largest first, and shift (out, groups), as of a fit."""
    alpha = scales((out, groups, 1), seed) * 2.0 ** -torch.arange(planes)
    return alpha * (1 + 0.1 * normal(out, groups, planes, seed=seed + 1).clamp(-1, 1)), (
        0.1 * normal(out, groups, seed=seed + 2)
    )


def random_planes(alpha, group_size=8):
    out, groups, planes = alpha.shape
    return integers((planes, out, groups * group_size), 0, 2)


@settings(deadline=None, max_examples=60)
@given(
    bits=WIDTHS,
    out=st.integers(1, 4),
    groups=st.integers(1, 12),
    places=st.integers(1, 8),
    signed=st.booleans(),
    middle=st.sampled_from([0.0, 4.0]),
    dtype=st.sampled_from([torch.float16, torch.float32]),
)
def test_a_number_is_its_code_times_the_step(bits, out, groups, places, signed, middle, dtype):
    chain = [bits] if isinstance(bits, int) else bits
    multiples = []
    for number, width in enumerate(chain):
        low = -(2 ** (width - 1)) if number or signed else 0
        code = torch.randint(low, low + 2**width, (out, groups), generator=seeded(number))
        multiples.append(code + (multiples[-1] // 2 if number else 0))
    stacked = multiples[0] if isinstance(bits, int) else torch.stack(multiples, -1)
    kind = bits if isinstance(bits, int) else tuple(bits)
    span = scales((out,)).to(dtype)
    numbers = Stepped.pack(stacked.float(), span, kind, places, signed, middle)
    exact = torch.stack(multiples, -1) * span.double()[:, None, None] / 2**places + middle
    expected = exact.float().to(dtype).view(numbers.shape)
    assert numbers.dequantize().dtype == dtype
    assert numbers.codes.numel() == out * -(-groups * sum(chain) // 8)
    if middle:  # a difference of two float32 numbers, of which the product has an error
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(numbers.dequantize(), expected, rtol=eps, atol=1e-5)
    else:
        assert torch.equal(numbers.dequantize(), expected)


@settings(deadline=None, max_examples=40)
@given(
    scale_bits=st.integers(4, 8),
    planes=st.integers(1, 6),
    groups=st.integers(2, 20),
    shifted=st.booleans(),
    exponent=st.integers(-20, 18),
    seed=st.integers(0, 100),
)
def test_what_is_stored_is_what_was_seen(scale_bits, planes, groups, shifted, exponent, seed):
    alpha, shift = coding(3, groups, planes, seed)
    alpha = alpha * 2.0**exponent
    shift = shift * 2.0**exponent if shifted else None
    stored_alpha, stored_shift = stored_coding(alpha, shift, scale_bits)
    weight = Binary.from_planes(random_planes(alpha), stored_alpha, stored_shift)
    again = from_tensors("binary", weight.to_tensors(), json.loads(json.dumps(weight.spec())))
    assert torch.equal(again.alpha, values(stored_alpha))
    assert torch.equal(again.dequantize(), weight.dequantize())
    if shifted:
        assert torch.equal(again.shift, values(stored_shift))
    else:
        assert again.shift is None


@settings(deadline=None, max_examples=40)
@given(
    scale_bits=st.integers(4, 8),
    bits=st.integers(1, 8),
    groups=st.integers(2, 20),
    zero=st.sampled_from(["integer", "real", "middle"]),
    seed=st.integers(0, 100),
)
def test_a_uniform_weight_is_stored_as_it_was_seen(scale_bits, bits, groups, zero, seed):
    out = 3
    scale = scales((out, groups), seed)
    real = 2.0 ** (bits - 1) + normal(out, groups, seed=seed)
    zeros = {
        "integer": integers((out, groups), 0, 2**bits, seed),
        "real": stored_zero_points(real, scale, bits, scale_bits),
        "middle": None,
    }[zero]
    steps = stored_scale(scale, scale_bits)
    codes = integers((out, groups * 8), 0, 2**bits)
    weight = Uniform.from_codes(codes, steps, zeros, bits)
    again = from_tensors("uniform", weight.to_tensors(), json.loads(json.dumps(weight.spec())))
    assert torch.equal(again.scale, values(steps))
    assert torch.equal(again.dequantize(), weight.dequantize())
    z = weight.unpacked()[2].double()[..., None]
    expected = values(steps).double()[..., None] * (codes.view(out, groups, 8).double() - z)
    torch.testing.assert_close(
        weight.dequantize().double(), expected.flatten(1), rtol=1e-6, atol=1e-6
    )


def snapped(alpha, shift, step, widths, shift_bits):
    """By definition, number by number: the nearest multiples that the bits can hold."""
    half = 2 ** (shift_bits - 1)
    rows = []
    for alphas, offset in zip(alpha.tolist(), shift.tolist(), strict=True):
        chain = [min(max(round(alphas[0] / step), 0), 2 ** widths[0] - 1)]
        for number, width in zip(alphas[1:], widths[1:], strict=True):
            reach = 2 ** (width - 1)
            code = min(max(round(number / step) - chain[-1] // 2, -reach), reach - 1)
            chain.append(max(0, chain[-1] // 2 + code))
        rows.append([*chain, min(max(round(offset / step), -half), half - 1)])
    return torch.tensor(rows, dtype=torch.float64) * step


@pytest.mark.parametrize("scale_bits", [4, 6, 8])
def test_every_number_is_the_nearest_of_one_step_and_other_steps_are_worse(scale_bits):
    alpha, shift = coding(out=20)
    widths, shift_bits = coding_bits(scale_bits, 3)
    stored_alpha, stored_shift = stored_coding(alpha, shift, scale_bits)
    found = torch.cat([values(stored_alpha), values(stored_shift)[..., None]], -1).double()
    steps = stored_alpha.span.double() / 2**scale_bits
    for row, step in enumerate(steps.tolist()):
        numbers = torch.cat([alpha[row], shift[row, :, None]], -1).double()
        chosen = snapped(alpha[row], shift[row], step, widths, shift_bits)
        torch.testing.assert_close(found[row], chosen, rtol=2**-11, atol=1e-6)
        error = (chosen - numbers).square().sum()
        for factor in (0.5, 0.7, 1.4, 2.0, 4.0):
            other = snapped(alpha[row], shift[row], step * factor, widths, shift_bits)
            assert error < (other - numbers).square().sum() * 1.1


@settings(deadline=None, max_examples=30)
@given(scale_bits=st.integers(4, 8), planes=st.integers(2, 6), seed=st.integers(0, 100))
def test_alphas_that_are_no_halves_are_within_a_step_that_reaches_all(scale_bits, planes, seed):
    alpha = scales((4, 9, planes), seed)
    stored_alpha, _ = stored_coding(alpha, None, scale_bits)
    widths, _ = coding_bits(scale_bits, planes)
    reach = alpha[..., 0] / (2**scale_bits - 1)
    for plane, width in enumerate(widths[1:], 1):
        away = (alpha[..., plane] - alpha[..., plane - 1] / 2).abs()
        reach = torch.maximum(reach, away / (2 ** (width - 1) - 1))
    error = (values(stored_alpha).float() - alpha).square().mean((1, 2)).sqrt()
    assert (error <= reach.amax(1)).all()


def test_the_error_falls_with_the_bits():
    alpha, shift = coding(out=50)
    errors = []
    for scale_bits in (4, 5, 6, 7, 8):
        a, s = (values(part).float() for part in stored_coding(alpha, shift, scale_bits))
        errors.append(((a - alpha).square().sum() + (s - shift).square().sum()).item())
    # a bit more halves the step: the squared error falls to about a quarter
    assert all(later < earlier / 3 for earlier, later in pairwise(errors))


def test_an_important_group_keeps_its_numbers():
    alpha, shift = coding(out=30)
    importance = torch.ones(9)
    importance[4] = 1e6

    def error_of_group(weights):
        snapped = values(stored_coding(alpha, shift, 5, weights)[0]).float()
        return (snapped - alpha)[:, 4].square().sum().item()

    assert error_of_group(importance) < 0.8 * error_of_group(None)


@pytest.mark.parametrize(
    "columns, bits, scale_bits, expected",
    [
        # codes of alphas and of the shift, a span of 16 bits, each row in whole bytes
        (576, 3, 6, 3 + (120 + 48 + 16) / 576),
        (1536, 3, 6, 3 + (312 + 120 + 16) / 1536),
        (4096, 3, 6, 3 + 18 / 64 + 16 / 4096),
        (4096, 3, 7, 3 + 22 / 64 + 16 / 4096),
        (4096, 2, 6, 2 + 15 / 64 + 16 / 4096),
        (4096, 4, 8, 4 + 27 / 64 + 16 / 4096),
        (4096, 3, 16, 4.0),
    ],
)
def test_the_bits_of_a_binary_weight(columns, bits, scale_bits, expected):
    alpha, shift = stored_coding(*coding(2, columns // 64, bits), scale_bits)
    weight = Binary.from_planes(integers((bits, 2, columns), 0, 2), alpha, shift)
    assert bits_per_weight([weight])["total"] == pytest.approx(expected)


def test_the_bits_of_a_uniform_weight():
    scale = stored_scale(scales((2, 64)), 6)
    weight = Uniform.from_codes(integers((2, 4096), 0, 8), scale, integers((2, 64), 0, 8), 3)
    assert bits_per_weight([weight])["total"] == pytest.approx(3 + (6 + 3) / 64 + 16 / 4096)
    zero = stored_zero_points(scales((2, 64)), scales((2, 64)), 3, 6)
    weight = Uniform.from_codes(integers((2, 4096), 0, 8), scale, zero, 3)
    assert bits_per_weight([weight])["total"] == pytest.approx(3 + 12 / 64 + 32 / 4096)


def test_rows_of_zeros_stay_zero_and_equal_numbers_stay_equal():
    alpha, shift = coding()
    alpha[1] = shift[1] = 0
    alpha[2] = torch.tensor([0.4, 0.2, 0.1])
    shift[2] = 0
    a, s = (values(part) for part in stored_coding(alpha, shift, 6))
    assert not a[1].any() and not s[1].any()
    assert torch.equal(a[2], a[2, :1].expand_as(a[2]))
    torch.testing.assert_close(a[2].float(), alpha[2], rtol=0.02, atol=0)


def test_a_scale_that_is_not_zero_does_not_become_zero():
    scale = torch.tensor([[1.0, 1e-4, 0.0]]).repeat(1, 8)
    snapped = values(stored_scale(scale, 6))
    assert torch.equal(snapped > 0, scale > 0)


def test_numbers_that_gain_nothing_or_are_not_finite_stay_in_half_precision():
    alpha, shift = coding(groups=1, planes=1)
    for stored, given_numbers in zip(stored_coding(alpha, shift, 8), (alpha, shift), strict=True):
        assert torch.equal(stored, as_stored(given_numbers))
    scale = scales((6, 1))
    assert torch.equal(stored_scale(scale, 4), as_stored(scale))
    alpha, shift = coding()
    shift[3, 2] = torch.nan
    assert torch.equal(stored_coding(alpha, shift, 6)[0], as_stored(alpha))
    scale = scales((6, 9))
    scale[0, 0] = torch.inf
    assert torch.equal(stored_scale(scale, 6), as_stored(scale))


@pytest.mark.parametrize("factor, dtype", [(1, torch.float16), (1e-8, torch.float32)])
def test_spans_are_float16_unless_that_distorts_them(factor, dtype):
    alpha, shift = (part * factor for part in coding())
    stored = stored_coding(alpha, shift, 8)[0]
    assert stored.span.dtype == values(stored).dtype == dtype
    torch.testing.assert_close(
        values(stored).float()[..., 0], alpha[..., 0], rtol=0, atol=0.005 * factor
    )


def test_signs_and_odd_widths_are_refused():
    alpha, shift = coding()
    with pytest.raises(ConfigError, match="as an integer it has no sign"):
        stored_coding(-alpha, shift, 6)
    with pytest.raises(ConfigError, match="as an integer it has no sign"):
        stored_scale(-scales((2, 9)), 6)
    for scale_bits in (3, 9, 32):
        with pytest.raises(ConfigError, match=f"scale_bits={scale_bits} is neither 16"):
            check_scale_bits(scale_bits)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda tensors, spec: tensors.pop("alpha_span"), "alpha_span"),
        (lambda tensors, spec: tensors.pop("alpha_codes"), "alpha"),
        (lambda tensors, spec: spec.pop("alpha_bits"), "alpha_bits"),
        (lambda tensors, spec: spec.update(alpha_bits=[6, 5]), "codes of the scales"),
        (lambda tensors, spec: spec.update(alpha_bits=[6, 5, 4, 0]), "scales of 0 bits"),
        (lambda tensors, spec: spec.update(alpha_bits=[8, 5]), "holds"),
        (lambda tensors, spec: spec.update(alpha_bits=15), "scales of 15 bits"),
        (lambda tensors, spec: spec.update(alpha_bits=[]), "without a number"),
        (lambda tensors, spec: spec.update(alpha_bits="65"), "'6' bits"),
        (lambda tensors, spec: spec.update(shift_bits=None), "None"),
        (lambda tensors, spec: spec.update(alpha_places=300), "300 bits"),
        (lambda tensors, spec: spec.update(shift_places=2.0), "2.0 bits"),
        (lambda tensors, spec: tensors.update(alpha_span=torch.ones(6, 2)), "span"),
        (lambda tensors, spec: tensors.update(shift=torch.ones(6, 9)), "shift is there twice"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, words):
    alpha, shift = stored_coding(*coding(), 6)
    weight = Binary.from_planes(random_planes(alpha=coding()[0]), alpha, shift)
    tensors, spec = weight.to_tensors(), weight.spec()
    change(tensors, spec)
    with pytest.raises(StoreError, match=words):
        from_tensors("binary", tensors, spec)


def test_alpha_and_shift_have_one_span():
    alpha, shift = stored_coding(*coding(), 6)
    planes = random_planes(coding()[0])
    with pytest.raises(StoreError, match="do not share one span"):
        Binary.from_planes(planes, alpha, values(shift))
    other = stored_coding(*coding(), 6)[1]
    with pytest.raises(StoreError, match="do not share one span"):
        Binary.from_planes(planes, alpha, other)
