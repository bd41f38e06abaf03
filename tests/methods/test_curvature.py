"""Curvature coding against plain float64: weighted levels, feedback, stored numbers, the start."""

from __future__ import annotations

import itertools

import pytest
import torch

import qbench
from qbench import LinearStats, Scheme
from qbench.checks.samples import sample_stats, sample_weight
from qbench.errors import ConfigError
from qbench.formats.stepped import Stepped, values
from qbench.methods.alternating import alternate
from qbench.methods.curvature import (
    CurvatureCoding,
    curvature_start,
    feed_back,
    nearest_levels,
    uniform_start,
    weighted_levels,
)
from qbench.methods.curvature_refinement import descend, refit
from qbench.methods.error_feedback import inverse_cholesky
from qbench.methods.levels import level_signs
from qbench.methods.sorted_groups import SortedGroups
from qbench.methods.stored_numbers import Steps, stored_numbers
from samples import normal, seeded


def correlated(columns=64, tokens=200, seed=0):
    """Second moments of inputs that depend on each other, some of them large."""
    draw = seeded(seed)
    x = torch.randn(tokens, columns // 4, generator=draw) @ torch.randn(
        columns // 4, columns, generator=draw
    )
    x = x + torch.randn(tokens, columns, generator=draw)
    x = x * torch.exp(0.7 * torch.randn(columns, generator=draw))
    return LinearStats(2 / tokens * x.T @ x, tokens)


def levels_of(alpha, shift):
    """All sums shift +- alpha_1 +- .. +- alpha_b, (rows, L), written out."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=alpha.shape[1])))
    return shift[:, None] + alpha @ signs.T.to(alpha.dtype)


def weighted_error(W, F, alpha, shift):
    levels = levels_of(alpha.double(), shift.double())
    distances = (W.double()[..., None] - levels[:, None]).square()  # (rows, g, L)
    return (F.double() * distances.amin(-1)).sum(1)


# --- levels


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_one_round_is_weighted_least_squares(bits):
    W, F = normal(12, 32), torch.rand(12, 32, generator=seeded(1)) + 0.01
    alpha, shift = uniform_start(W, bits, F)
    _, found, moved = alternate(SortedGroups.of(W, F), alpha, shift, 0, True)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=bits))).double()
    levels = shift[:, None].double() + alpha.double() @ signs.T
    codes = (W.double()[..., None] - levels[:, None]).abs().argmin(-1)
    for row in range(len(W)):
        columns = torch.cat([torch.ones(32, 1).double(), signs[codes[row]]], 1)
        root = F[row].double().sqrt()
        theta = torch.linalg.lstsq(
            columns * root[:, None], (W[row].double() * root)[:, None], driver="gelsd"
        ).solution[:, 0]
        ours = torch.cat([moved[row, None], found[row]])
        best = (root * (columns @ theta - W[row])).square().sum()
        assert (root * (columns @ ours - W[row])).square().sum() <= best * (1 + 1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_rounds_never_raise_the_weighted_error(bits):
    W = normal(40, 64)
    weights = torch.exp(2 * torch.randn(5, 64, generator=seeded(2)))  # of 5 groups
    F = weights.repeat(8, 1)
    start = weighted_error(W, F, *uniform_start(W, bits, F / F.mean(1, keepdim=True)))
    errors = [start]
    for rounds in (1, 4, 16):
        errors.append(weighted_error(W, F, *weighted_levels(W, weights, bits, rounds)))
    for before, after in itertools.pairwise(errors):
        assert (after <= before * (1 + 1e-5)).all()
    assert errors[-1].sum() < 0.99 * start.sum() or bits == 1
    alike = weighted_levels(W, torch.ones(5, 64), bits, 16)
    assert errors[-1].sum() < weighted_error(W, F, *alike).sum()


def test_equal_weights_are_no_weights():
    W = normal(10, 32)
    F = torch.full((10, 32), 3.0)
    alpha, shift = uniform_start(W, 3, F)
    weighted = alternate(SortedGroups.of(W, F), alpha, shift, 5, True)
    plain = alternate(SortedGroups.of(W), alpha, shift, 5, True)
    # Sums of float32 squares there, of float64 here.
    for ours, theirs in zip(weighted, (3 * plain[0], *plain[1:]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# --- feedback


def plain_feedback(W, H, levels, order):
    """The optimal brain surgeon, column by column, from the inverse of what is left of H."""
    W, H, levels = W.double().clone(), H.double(), levels.double()
    group = W.shape[1] // levels.shape[1]
    chosen, compensated = torch.zeros_like(W), torch.zeros_like(W)
    left = order.tolist()
    while left:
        column = left[0]
        inverse = torch.linalg.inv(H[left][:, left])
        compensated[:, column] = W[:, column]
        table = levels[:, column // group]  # (out, L)
        nearest = (W[:, column, None] - table).abs().argmin(1)
        chosen[:, column] = table.gather(1, nearest[:, None])[:, 0]
        error = W[:, column] - chosen[:, column]
        W[:, left] -= error[:, None] * (inverse[0] / inverse[0, 0])
        left = left[1:]
    return compensated, chosen


@pytest.mark.parametrize("bits, groups", [(1, 4), (2, 1), (3, 4), (4, 2)])
def test_feedback_is_the_optimal_brain_surgeon_onto_levels(bits, groups, monkeypatch):
    monkeypatch.setattr("qbench.methods.curvature.BLOCK", 24)  # groups cross the blocks
    W, H = normal(9, 64), correlated().hessian
    H = H + 0.05 * H.diagonal().mean() * torch.eye(64)
    draw = seeded(bits)
    levels = torch.randn(9, groups, 2**bits, generator=draw).sort(-1).values  # of any spacing
    order = H.diagonal().argsort(descending=True)
    U = inverse_cholesky(H[order][:, order], 0.0)
    before = W.clone()
    found, loss = feed_back(W, U, levels, order)
    expected, chosen = plain_feedback(W, H, levels, order)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)
    change = chosen - W.double()
    torch.testing.assert_close(
        loss.double(), ((change @ H.double()) * change).sum(1), rtol=1e-2, atol=1e-3
    )
    assert torch.equal(W, before)


# --- levels and codes under the whole Hessian


def row_loss(V, W, H):
    change = (V - W).double()
    return ((change @ H.double()) * change).sum(1)


@pytest.mark.parametrize("bits, groups", [(1, 4), (2, 1), (3, 4)])
def test_refitted_levels_are_least_squares_under_the_hessian(bits, groups, monkeypatch):
    monkeypatch.setattr("qbench.methods.curvature_refinement.SYSTEMS", 3 * (groups * 4) ** 2)
    W, H = normal(9, 64), correlated().hessian
    codes = torch.randint(2**bits, (9, groups, 64 // groups), generator=seeded(4))
    alpha, shift = refit(W, H, codes, bits)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=bits))).double()
    root = torch.linalg.cholesky(H.double(), upper=True)
    for row in range(len(W)):
        blocks = [
            torch.cat([signs[codes[row, i]], torch.ones(64 // groups, 1).double()], 1)
            for i in range(groups)
        ]
        C = torch.block_diag(*blocks)
        theta = torch.linalg.lstsq(root @ C, (root @ W[row].double())[:, None]).solution
        theta = theta[:, 0].view(groups, bits + 1)
        expected = theta[:, :bits].abs().sort(1, descending=True).values
        torch.testing.assert_close(alpha[row].double(), expected, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(shift[row].double(), theta[:, bits], rtol=2e-3, atol=2e-3)


def test_planes_that_agree_leave_a_system_that_is_solved_or_said():
    W, H = normal(2, 32), correlated(32).hessian
    alpha, shift = refit(W, H, torch.zeros(2, 2, 16, dtype=torch.long), 2)
    constant = torch.stack([alpha.sum(2), shift])
    assert torch.isfinite(constant).all() or constant.isnan().all()


def plain_descent(W, H, levels, V):
    W, H, V = W.double(), H.double(), V.double().clone()
    targets = torch.zeros_like(V)
    group = W.shape[1] // levels.shape[1]
    for j in range(W.shape[1]):
        targets[:, j] = V[:, j] - ((V - W) @ H[:, j]) / H[j, j]
        table = levels[:, j // group].double()
        nearest = (targets[:, j, None] - table).abs().argmin(1)
        V[:, j] = table.gather(1, nearest[:, None])[:, 0]
    return targets, V


@pytest.mark.parametrize("bits, groups", [(1, 4), (3, 1), (3, 4)])
def test_descent_gives_each_column_its_best_level(bits, groups, monkeypatch):
    monkeypatch.setattr("qbench.methods.curvature_refinement.BLOCK", 24)
    W, H = normal(9, 64), correlated().hessian
    levels = torch.randn(9, groups, 2**bits, generator=seeded(bits)).sort(-1).values
    V = nearest_levels(W, levels)
    before = V.clone()
    targets, found = descend(W, H, levels, V)
    expected_targets, expected = plain_descent(W, H, levels, V)
    torch.testing.assert_close(found.double(), expected)
    torch.testing.assert_close(targets.double(), expected_targets, rtol=1e-3, atol=1e-3)
    assert torch.equal(nearest_levels(targets, levels), found) and torch.equal(V, before)
    assert (row_loss(found, W, H) <= row_loss(V, W, H) * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_refits_lower_the_loss_of_the_layer(bits):
    weight, stats, scheme = normal(24, 64), correlated(), Scheme(bits, 16)
    losses = [
        curvature_start(weight, stats, scheme, CurvatureCoding(refits=refits)).loss.sum()
        for refits in (0, 1, 4)
    ]
    assert losses[1] < 0.98 * losses[0] and losses[2] <= losses[1]


# --- numbers as they are stored


def test_numbers_are_snapped_in_training_as_they_are_stored():
    alpha = torch.rand(6, 5, 3, generator=seeded(1)) * torch.tensor([0.4, 0.2, 0.1])
    shift = 0.05 * normal(6, 5)
    stored = stored_numbers(alpha.sort(2, descending=True).values, shift, 7)
    steps = Steps.of(*stored)
    assert isinstance(stored[0], Stepped) and steps is not None
    # What is stored already is a fixed point, and other numbers move by half a step at most.
    kept = steps.snapped(values(stored[0]).float(), values(stored[1]).float())
    for ours, theirs in zip(kept, stored, strict=True):
        assert torch.equal(ours, values(theirs).float())
    moved = values(stored[0]).float() + 0.003 * normal(6, 5, 3).abs()
    snapped, _ = steps.snapped(moved, shift)
    inside = snapped < (2.0 ** torch.tensor([7, 6, 5]) - 1.5) * steps.step[..., None]
    most = 0.5 * steps.step[..., None] + 2.0**-10 * snapped  # the product is rounded to float16
    assert ((snapped - moved).abs() <= most)[inside & (moved > 0)].all()
    packed, _ = steps.stored(moved, shift)
    assert torch.equal(values(packed).float(), snapped)
    assert packed.codes.shape == stored[0].codes.shape
    assert torch.equal(packed.span, stored[0].span)
    negative, _ = steps.snapped(-moved, shift)
    assert (negative == 0).all()


def test_small_groups_keep_their_scales():
    """One step for a row of which half of the groups are 50 times smaller would lose these."""
    sizes = torch.tensor([1.0, 0.02]).repeat(4)[None, :, None]
    alpha = (torch.rand(6, 8, 2, generator=seeded(3)) + 0.5) * sizes
    alpha, shift = alpha.sort(2, descending=True).values, torch.zeros(6, 8)
    stored = stored_numbers(alpha, shift, 7)
    assert torch.equal(stored[0], alpha.half()) and Steps.of(*stored) is None
    assert isinstance(stored_numbers(alpha / sizes, shift, 7)[0], Stepped)


# --- the start, and the method


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("scale_bits", [7, 16])
def test_codes_are_the_levels_nearest_to_the_compensated_values(bits, scale_bits):
    weight, stats, scheme = normal(24, 64), correlated(), Scheme(bits, 16)
    start = curvature_start(weight, stats, scheme, CurvatureCoding(scale_bits=scale_bits))
    coded = (
        qbench.get_method("alternating-h", scale_bits=scale_bits)
        .quantize_linear(weight, stats, scheme)
        .dequantize()
    )
    levels = levels_of(
        values(start.alpha).float().flatten(0, 1), values(start.shift).float().flatten()
    )
    rows = start.values.reshape(-1, 16)
    best = (rows[..., None] - levels[:, None]).abs().amin(-1)
    torch.testing.assert_close((coded.view(-1, 16) - rows).abs(), best, rtol=1e-3, atol=1e-5)
    H = stats.hessian + 0.05 * stats.hessian.diagonal().mean() * torch.eye(64)
    change = (coded - weight).double()
    loss = ((change @ H.double()) * change).sum(1)
    torch.testing.assert_close(start.loss.double(), loss, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_its_loss_is_far_below_that_of_coding_that_sees_the_weights_alone(bits):
    weight, stats, scheme = sample_weight(), sample_stats(), Scheme(bits, 32)

    def loss(found):
        change = (found.dequantize() - weight).double()
        return ((change @ stats.hessian.double()) * change).sum().item()

    ours = qbench.get_method("alternating-h").quantize_linear(weight, stats, scheme)
    alone = qbench.get_method("alternating").quantize_weight(weight, scheme)
    assert loss(ours) < 0.4 * loss(alone)


@pytest.mark.parametrize("bits, most", [(2, 2.4), (3, 3.5), (4, 4.5)])
def test_scales_take_few_bits(bits, most):
    weight = normal(64, 512)
    found = qbench.get_method("alternating-h").quantize_linear(
        weight, correlated(512), Scheme(bits, 64)
    )
    stored = sum(tensor.nbytes for tensor in found.to_tensors().values())
    assert bits + 0.2 < 8 * stored / weight.numel() < most


def test_a_layer_that_saw_no_token_is_coded_by_its_weights_alone():
    weight = normal(8, 32)
    method = qbench.get_method("alternating-h")
    found = method.quantize_linear(weight, LinearStats(torch.zeros(32, 32), 0), Scheme(3, 16))
    white = method.quantize_linear(weight, LinearStats(torch.eye(32), 32), Scheme(3, 16))
    assert torch.equal(found.dequantize(), white.dequantize())


@pytest.mark.parametrize(
    "params, words",
    [({"refits": -1}, "refits=-1"), ({"damp": -0.1}, "damp=-0.1"), ({"scale_bits": 9}, "scale_")],
)
def test_settings_out_of_range_are_refused(params, words):
    with pytest.raises(ConfigError, match=words):
        qbench.get_method("alternating-h", **params)


def test_levels_of_signs_are_those_of_the_products():
    signs = level_signs(3, torch.device("cpu"))
    listed = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3))).double()
    assert torch.equal(signs, listed)
