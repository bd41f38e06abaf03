"""Grids of uniform weights: the search under an importance, error feedback, quantized scales."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import qbench
from qbench import LinearStats, Scheme
from qbench.checks.samples import (
    equal,
    sample_inputs,
    sample_stats,
    sample_weight,
    statistics,
)
from qbench.errors import ConfigError
from qbench.formats.snapping import stored_scale, stored_zero_points
from qbench.formats.stepped import Stepped, values
from qbench.methods.awq import AWQ
from qbench.methods.dynamic_groups import holds
from qbench.methods.error_feedback import importance, inverse_cholesky, live_hessian, round_columns
from qbench.methods.flexround import FlexRound
from qbench.methods.gptq import GPTQ
from qbench.methods.grids import fitted_line, grid_error, nearest_codes, round_to_grid
from qbench.methods.omniquant import OmniQuant
from qbench.methods.rtn import RTN
from qbench.methods.rtn_h import RTNH
from samples import normal

GROUP = 32


def weighted_error(weight, grid, counts, bits=3):
    """sum f (w - w^)^2 of each group, in float64; counts (groups, g)."""
    scale, zero = grid
    W = weight.unflatten(1, (-1, GROUP))
    q = round_to_grid(W, scale, zero, bits)
    dense = (q.double() - zero[..., None].double()) * scale[..., None].double()
    return ((dense - W) ** 2 * counts).sum(-1)


def hessian_error(found, weight, stats):
    change = found.dequantize() - weight
    return ((change @ stats.hessian) * change).sum(1)


# --- the search


@pytest.mark.parametrize("bits", [2, 3])
def test_the_search_is_near_the_best_of_all_grids(bits):
    weight = normal(16, GROUP)
    counts = (2 * normal(1, GROUP, seed=3)).exp()
    scheme = Scheme(bits, GROUP)
    found = weighted_error(
        weight, RTN().grid(weight.unflatten(1, (-1, GROUP)), scheme, counts), counts, bits
    ).sum()
    # Every zero point with every scale of a fine ladder, up to the whole range.
    best = torch.full((16,), torch.inf, dtype=torch.float64)
    whole = weight.amax(1).clamp_min(0) - weight.amin(1).clamp_max(0)
    for part, zero in product(torch.linspace(0.1, 1, 200), range(2**bits)):
        grid = ((whole * part / (2**bits - 1))[:, None], torch.full((16, 1), zero))
        best = torch.minimum(best, weighted_error(weight, grid, counts, bits)[:, 0])
    assert found <= 1.03 * best.sum()


@pytest.mark.parametrize("zero_point", ["integer", "real"])
def test_an_importance_lowers_the_error_that_it_weights(zero_point):
    weight = sample_weight()
    counts = (2 * normal(weight.shape[1] // GROUP, GROUP)).exp()
    scheme, W = Scheme(3, GROUP), weight.unflatten(1, (-1, GROUP))
    search = RTN(zero_point=zero_point)
    weighted, plain = search.grid(W, scheme, counts), search.grid(W, scheme)
    ones = torch.ones_like(counts)
    assert (
        weighted_error(weight, weighted, counts).sum()
        < 0.8 * weighted_error(weight, plain, counts).sum()
    )
    assert weighted_error(weight, plain, ones).sum() < weighted_error(weight, weighted, ones).sum()
    for same, other in zip(search.grid(W, scheme, 3 * ones), plain, strict=True):
        torch.testing.assert_close(same, other, rtol=1e-3, atol=1e-3)


def test_a_group_is_searched_under_its_own_importance():
    """Row r of the rows of all groups has the importance of group r % groups, in every slice."""
    weight = normal(3, 4 * GROUP).expand(3, -1).contiguous()
    W = weight.unflatten(1, (-1, GROUP))
    counts = (2 * normal(4, GROUP)).exp()
    whole, _ = RTN().real_grid(W, Scheme(3), counts)
    for group in range(4):
        alone, _ = RTN().real_grid(W[:, group : group + 1], Scheme(3), counts[group : group + 1])
        torch.testing.assert_close(whole[:, group], alone[:, 0])


def test_the_fitted_line_is_that_of_least_squares():
    W = normal(8, GROUP)
    f = normal(8, GROUP, seed=1).exp()
    s, z = torch.full((8,), 0.7), torch.full((8,), 3.2)
    scale, zero = fitted_line(W, s, z, 3, f)
    q = nearest_codes(W, s, z, 3).double()
    for row in range(8):
        root = f[row].double().sqrt()[:, None]
        columns = torch.stack([q[row], torch.ones(GROUP, dtype=torch.float64)], 1)
        slope, offset = torch.linalg.lstsq(root * columns, root * W[row, :, None].double()).solution
        torch.testing.assert_close(scale[row].double(), slope[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(zero[row].double(), -(offset / slope)[0], rtol=1e-3, atol=1e-4)


def test_grid_error_is_the_plain_sum():
    W, f = normal(4, GROUP), normal(4, GROUP, seed=1).exp()
    s, z = torch.rand(4) + 0.1, torch.tensor([0.0, 1.0, 4.0, 7.0])
    q = (W / s[:, None] + z[:, None]).round().clamp(0, 7)
    plain = (f * ((q - z[:, None]) * s[:, None] - W).abs() ** 2.4).sum(1)
    torch.testing.assert_close(grid_error(W, s, z, 3, 2.4, f), plain)


# --- error feedback


def test_the_codes_are_nearest_to_the_values_and_the_loss_is_what_it_says():
    weight, stats = sample_weight(), sample_stats()
    H = live_hessian(stats)
    U = inverse_cholesky(H, 0.01)
    s = torch.full_like(weight, weight.abs().mean())
    z = torch.full_like(weight, 3.0)
    rounded = round_columns(weight, U, s, z, 7, 50)
    assert torch.equal(rounded.codes, (rounded.values / s + z).round().clamp(0, 7).byte())
    change = ((rounded.codes - z) * s - weight).double()
    damped = H.double() + 0.01 * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    expected = ((change @ damped) * change).sum(1)
    torch.testing.assert_close(rounded.loss.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["gptq", "rtn-h", "alternating-h", "flexround", "uniquanf", "flexbcq", "unisvq"]
)
def test_the_size_of_the_inputs_changes_nothing_where_one_of_them_is_dead(name):
    weight, scheme = sample_weight(), Scheme(3, GROUP)

    def quantized(size):
        method = qbench.get_method(name)
        stats = statistics(sample_inputs() * size)
        assert stats.hessian.diagonal().count_nonzero() == len(stats.hessian) - 1
        if hasattr(method, "quantize_linear"):
            return method.quantize_linear(weight, stats, scheme)
        if name == "unisvq":
            return method.start(weight, scheme, method.curvature(weight, scheme, stats)).export()
        return method.prepare(weight, scheme, stats).export()

    assert equal(quantized(2.0**-10), quantized(1.0))


def plain_dynamic(weight, H, bits, counted):
    """Dynamic groups in the natural order, in float64, by the inverse of what remains of H."""
    W = weight.double().clone()
    H = live_hessian(LinearStats(H, 100)).double()
    H += 0.01 * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    curvature = torch.stack([1 / torch.linalg.inv(H[i:, i:])[0, 0] for i in range(len(H))])
    for i in range(W.shape[1]):
        if i % GROUP == 0:
            here = slice(i, i + GROUP)
            counts = curvature[None, here].float() if counted else None
            s, z = RTN().real_grid(W[:, None, here].float(), Scheme(bits), counts)
            s = s.half()  # as the whole weight's scales are stored
        q = (W[:, i] / s[:, 0].double() + z[:, 0]).round().clamp(0, 2**bits - 1)
        dense = s[:, 0].double() * (q - z[:, 0])
        inverse = torch.linalg.inv(H[i:, i:])
        W[:, i:] -= ((W[:, i] - dense) / inverse[0, 0])[:, None] * inverse[0]
        W[:, i] = dense
    return W


@pytest.mark.parametrize("choice", ["none", "curvature"])
def test_dynamic_groups_equal_a_plain_reference(choice):
    weight, H = sample_weight()[:, :96], sample_stats().hessian[:96, :96].contiguous()
    method = GPTQ(act_order=False, importance=choice, groups="dynamic", block_size=20)
    found = method.quantize_linear(weight, LinearStats(H, 100), Scheme(3, GROUP)).dequantize()
    expected = plain_dynamic(weight, H, 3, choice == "curvature")
    differs = (found.double() - expected).abs() > 1e-4
    # A tie in float32 may fall to the other side, and moves what follows in its row.
    assert differs.any(1).double().mean() < 0.15


def test_a_group_that_its_row_has_no_steps_for_keeps_the_grid_of_the_weight():
    weight = 5 + 1e-3 * normal(16, 64)  # the feedback moves zero points out of their span
    errors = {}
    for groups in ("static", "dynamic"):
        method = GPTQ(groups=groups, zero_point="real", scale_bits=6)
        found = method.quantize_linear(weight, sample_stats(64), Scheme(8, GROUP)).dequantize()
        errors[groups] = ((found - weight).norm() / weight.norm()).item()
    assert errors["dynamic"] < 2 * errors["static"]


@pytest.mark.parametrize("dtype, numbers, held", [
    (torch.float16, [1.0, 7e4], [True, False]),
    (torch.float32, [1.0, 7e4], [True, True]),
])  # fmt: skip
def test_what_a_dtype_holds(dtype, numbers, held):
    assert holds(torch.ones(1, 2, dtype=dtype), torch.tensor([numbers])).tolist() == [held]


def test_what_steps_hold():
    scale = torch.tensor([[1.0] * 60 + [63.0]])
    scales = stored_scale(scale, 6)
    zeros = stored_zero_points(normal(1, 61), scale, 3, 6)
    assert isinstance(scales, Stepped) and isinstance(zeros, Stepped)
    numbers = torch.tensor([[0.4, 0.6, 63.4, 64.0]])
    unit = scales.span.item() * 2.0**-scales.places
    assert holds(scales, numbers * unit).tolist() == [[False, True, True, False]]
    unit = zeros.span.item() * 2.0**-zeros.places
    numbers = torch.tensor([[-33.0, -32.4, 0.0, 31.4, 32.0]])
    held = holds(zeros, numbers * unit + zeros.middle)
    assert held.tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("group", [GROUP, None])
def test_every_row_has_the_least_loss_of_all_ways(group):
    weight, stats, scheme = sample_weight(), sample_stats(), Scheme(2, group)
    best = GPTQ().rounded(weight, stats, scheme)
    ways = [
        GPTQ(importance=choice, groups=groups).rounded(weight, stats, scheme)
        for choice in ("none", "curvature")
        for groups in ("static", "dynamic")
    ]
    for way in ways:
        # Group by group the better of two is not always the better in the end.
        assert (best.loss <= way.loss * (1 + 1e-6)).sum() >= 0.7 * len(weight)
        assert best.loss.sum() < way.loss.sum() * (1 + 1e-6)
    static = torch.minimum(ways[0].loss, ways[2].loss)
    assert (best.loss <= static * (1 + 1e-6)).all()
    # The loss is that of what is stored.
    stored = GPTQ().quantize_linear(weight, stats, scheme)
    H = live_hessian(stats)
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(len(H))
    change = stored.dequantize() - weight
    torch.testing.assert_close(best.loss, (change @ damped * change).sum(1), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rtn_h_is_between_rtn_and_gptq(bits):
    weight, stats, scheme = sample_weight(), sample_stats(), Scheme(bits, GROUP)
    plain = hessian_error(RTN().quantize_weight(weight, scheme), weight, stats)
    chosen = hessian_error(RTNH().quantize_linear(weight, stats, scheme), weight, stats)
    feedback = hessian_error(GPTQ().quantize_linear(weight, stats, scheme), weight, stats)
    assert (chosen <= plain * (1 + 1e-5)).all()
    assert feedback.sum() < chosen.sum() < plain.sum()


# --- starts and quantized scales


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale_bits", [16, 6])
def test_flexround_starts_from_the_codes_of_gptq(symmetric, scale_bits):
    weight, stats, scheme = sample_weight(), sample_stats(), Scheme(3, GROUP, symmetric)
    start = FlexRound(scale_bits=scale_bits).prepare(weight, scheme, stats)
    found = start.export()
    plain = GPTQ(scale_bits=scale_bits).quantize_linear(weight, stats, scheme)
    assert (found.dequantize() != plain.dequantize()).double().mean() < 1e-3
    torch.testing.assert_close(start(), found.dequantize(), rtol=2e-3, atol=1e-6)
    without = FlexRound(start="weights").prepare(weight, scheme, stats).export()
    rounded = RTN().quantize_weight(weight, scheme)
    assert torch.equal(without.dequantize(), rounded.dequantize())


STEPPED = {
    "rtn": lambda bits: RTN(scale_bits=bits).quantize_weight(normal(24, 512), Scheme(3, GROUP)),
    "rtn-h": lambda bits: RTNH(scale_bits=bits).quantize_linear(*SAMPLE, Scheme(3, GROUP)),
    "gptq": lambda bits: GPTQ(scale_bits=bits).quantize_linear(*SAMPLE, Scheme(3, GROUP)),
    "flexround": lambda bits: moved(FlexRound(scale_bits=bits)),
    "omniquant": lambda bits: moved(OmniQuant(scale_bits=bits)),
    "awq": lambda bits: AWQ(scale_bits=bits)._rounded(normal(24, 512), Scheme(3, GROUP), None),
}
SAMPLE = (normal(24, 512), LinearStats(normal(600, 512).T @ normal(600, 512) / 300, 600))


def moved(method):
    """What a trained weight stores after its parameters have moved."""
    weight = method.prepare(SAMPLE[0], Scheme(3, GROUP), SAMPLE[1])
    with torch.no_grad():
        for i, parameter in enumerate(weight.parameters()):
            parameter += 0.1 * normal(*parameter.shape, seed=i)
    found = weight.export()
    # A tie falls to the other side where the scale is rounded to float16.
    differs = (weight() - found.dequantize()).abs() > 2e-3 * found.dequantize().abs() + 1e-4
    assert differs.double().mean() < 1e-3
    return found


@pytest.mark.parametrize("name", STEPPED)
def test_scales_of_few_bits_are_stored_and_cost_little(name):
    half, steps = (STEPPED[name](bits) for bits in (16, 6))
    stored = [sum(part.nbytes for part in found.to_tensors().values()) for found in (half, steps)]
    assert stored[1] < 0.95 * stored[0]
    errors = [(found.dequantize() - SAMPLE[0]).square().sum() for found in (half, steps)]
    assert errors[1] < 1.1 * errors[0]
    again = type(steps).from_tensors(steps.to_tensors(), steps.spec())
    assert torch.equal(again.dequantize(), steps.dequantize())


@pytest.mark.parametrize("name", ["rtn", "rtn-h", "gptq", "flexround", "omniquant", "awq"])
def test_scale_bits_that_cannot_be_are_refused(name):
    with pytest.raises(ConfigError, match="scale_bits=9 is neither 16"):
        qbench.get_method(name, scale_bits=9)


def test_rounding_sees_the_scales_that_are_stored():
    weight = normal(24, 512)
    W = weight.unflatten(1, (-1, GROUP))
    scale, zero = RTN(scale_bits=5).snapped_grid(W, Scheme(3, GROUP))
    assert isinstance(scale, Stepped)
    found = RTN(scale_bits=5).quantize_weight(weight, Scheme(3, GROUP)).dequantize().view_as(W)
    s, z = values(scale).float()[..., None], values(zero).float()[..., None]
    levels = s[..., None] * (torch.arange(8) - z[..., None])
    nearest = (levels - W[..., None]).abs().amin(-1)
    torch.testing.assert_close((found - W).abs(), nearest, rtol=1e-4, atol=1e-5)


def test_an_importance_follows_the_diagonal():
    H = torch.diag(torch.tensor([1.0, 3.0]))
    assert importance(H, 0.5).tolist() == [2.0, 4.0]
