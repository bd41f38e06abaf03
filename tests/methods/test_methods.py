"""Every method keeps its promises; and each against a plain reference or a number that is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import qbench
from families import FAMILIES, family_model
from qbench import LinearStats, Scheme
from qbench.checks import repetition
from qbench.checks.methods import CHECKS, run_check
from qbench.checks.samples import sample_stats, sample_weight
from qbench.errors import ConfigError, MethodError
from qbench.methods.alternating import alternate
from qbench.methods.error_feedback import inverse_cholesky
from qbench.methods.greedy import greedy_planes, solve_positive
from qbench.methods.sorted_groups import SortedGroups
from qbench.models.blocks import quantizable, read_weight, write_weight
from qbench.registry import methods
from samples import normal, token_ids

NAMES = sorted(name for name, cls in methods().items() if isinstance(cls, type))
# One method of each verb has all its promises in the quick tier; test_families visits the others.
QUICK = ("rtn", "gptq", "flexround")


@pytest.fixture(scope="module")
def gauss():
    return normal(256, 1024)


def quantized(name, weight, bits, group=128, **params):
    method = qbench.get_method(name, **params)
    return method.quantize_weight(weight, Scheme(bits=bits, group_size=group)).dequantize()


def group_errors(found, weight, group=128):
    return (found - weight).double().square().view(-1, group).mean(1)


def promises():
    """Every check of every method; most methods, and what needs another interpreter, are slow."""
    for name in NAMES:
        for check in CHECKS:
            slow = name not in QUICK or check.__name__ == "check_same_in_every_process"
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(name, check, id=f"{name}-{check.__name__}", marks=marks)


@pytest.fixture(scope="module")
def elsewhere():
    """The fingerprints of all methods in one fresh process: each interpreter takes seconds."""
    return repetition.fresh_fingerprints("all", NAMES)


@pytest.mark.parametrize("name, check", promises())
def test_method_keeps_its_promises(name, check, request, monkeypatch):
    if check is repetition.check_same_in_every_process:
        made = request.getfixturevalue("elsewhere")
        monkeypatch.setattr(repetition, "fresh_fingerprints", lambda origin, names: made)
    verdict = run_check(name, check)
    if verdict.outcome == "n/a":
        pytest.skip(verdict.reason)
    assert verdict.outcome == "ok", verdict.reason


@pytest.mark.parametrize("name", ["alternating", "gptq", "rtn"])
def test_a_layer_of_zeros_takes_no_more_bits_than_others(name):
    model = family_model(*FAMILIES["llama"])
    layers = quantizable(model)
    first, second = list(layers)[:2]
    write_weight(layers[second], torch.zeros_like(read_weight(layers[second])))
    weights = qbench.quantize(model, name, Scheme(3, 16), token_ids(8, 16)).weights
    assert not weights[second].dequantize().any()
    parts = [weights[layer].to_tensors().values() for layer in (first, second)]
    assert [part.dtype for part in parts[0]] == [part.dtype for part in parts[1]]


# --- rtn: known mean squared errors on N(0, 1), groups of 128


@pytest.mark.parametrize(
    "bits, zero_point, expected",
    [
        (2, "real", 0.253),
        (3, "real", 0.0460),
        (4, "real", 0.0100),
        (2, "integer", 0.2546),
        (3, "integer", 0.0468),
    ],
)
def test_rtn_minmax_error_on_gaussian_weights(gauss, bits, zero_point, expected):
    found = quantized("rtn", gauss, bits, clip="none", zero_point=zero_point)
    assert group_errors(found, gauss).mean().item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("bits, expected", [(2, 0.1327), (3, 0.0349), (4, 0.00907)])
def test_rtn_clip_search_error_on_gaussian_weights(gauss, bits, expected):
    errors = group_errors(quantized("rtn", gauss, bits), gauss)
    assert errors.mean().item() == pytest.approx(expected, rel=0.02)
    assert (errors <= group_errors(quantized("rtn", gauss, bits, clip="none"), gauss) * 1.001).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rtn_minmax_is_within_half_a_step(gauss, bits):
    weight = gauss[:64]
    found = quantized("rtn", weight, bits, clip="none", zero_point="real")
    step = (weight.view(64, -1, 128).amax(-1) - weight.view(64, -1, 128).amin(-1)) / (2**bits - 1)
    error = (found - weight).abs().view(64, -1, 128).amax(-1)
    assert (
        error <= step * (0.5 + 2**bits * 2.0**-10)
    ).all()  # the scale and the zero point are rounded to float16


@pytest.mark.parametrize("symmetric", [False, True])
def test_rtn_keeps_exact_zeros(gauss, symmetric):
    weight = gauss[:8].clone()
    weight[:, ::3] = 0
    scheme = Scheme(4, 64, symmetric)
    assert (
        qbench.get_method("rtn").quantize_weight(weight, scheme).dequantize()[:, ::3] == 0
    ).all()


def test_the_bare_tensor_interface():
    weight = normal(64, 256, seed=1)
    found = qbench.get_method("rtn").quantize_weight(weight, Scheme(bits=3, group_size=128))
    assert found.dequantize().shape == (64, 256) and found.codes.numel() == 64 * 256 * 3 // 8


# --- binary coding: hand-computed cases, and known errors


@pytest.mark.parametrize(
    "weight, bits, alpha, error",
    [
        ([-1, -0.5, 0.25, 2], 1, [0.9375], 1.796875),
        ([-1, -0.5, 0.25, 2], 2, [0.9375, 0.5625], 0.53125),
        ([-1, -0.5, 0.25, 2], 3, [0.9375, 0.5625, 0.3125], 0.140625),
        ([0, 1, 2, 3], 2, [1.5, 1.0], 1.0),  # sign(0) is +1
        ([0, 1, 2, 3], 3, [1.5, 1.0, 0.5], 0.0),
    ],
)
def test_greedy_by_hand(weight, bits, alpha, error):
    W = torch.tensor([weight], dtype=torch.float32)
    planes, found, _ = greedy_planes(W, bits, shifted=False, refine=False)
    assert found[0].tolist() == pytest.approx(alpha)
    rebuilt = ((planes * 2.0 - 1) * found.T[:, :, None]).sum(0)
    assert (rebuilt - W).square().sum().item() == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize("bits, ceiling", [(2, 0.1097), (3, 0.0316), (4, 0.0082)])
def test_alternating_error_on_gaussian_weights(gauss, bits, ceiling):
    errors = group_errors(quantized("alternating", gauss, bits), gauss)
    assert errors.mean().item() <= ceiling
    assert (errors <= group_errors(quantized("rtn", gauss, bits), gauss)).all(), (
        "above rtn in some group"
    )


def test_one_binary_plane_is_at_its_optimum(gauss):
    found = quantized("alternating", gauss, 1, shift=False)
    expected = gauss.view(-1, 128).abs().mean(1)
    torch.testing.assert_close(found.abs().view(-1, 128)[:, 0], expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shifted", [False, True])
def test_alternating_equals_a_plain_reference(gauss, bits, shifted):
    rows = gauss[:4].reshape(-1, 128)
    _, alpha, shift = greedy_planes(rows, bits, shifted, refine=False)
    error, *_ = alternate(SortedGroups.of(rows), alpha, shift, 6, shifted)
    plain = plain_alternating(rows.double(), alpha.double(), shift.double(), 6, shifted)
    torch.testing.assert_close(error, plain, rtol=1e-6, atol=1e-9)


def plain_alternating(rows, alpha, shift, rounds, shifted):
    """Xu et al., algorithm 2, weight by weight in float64: all codes searched, scales by lstsq."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * alpha.shape[1])
    errors = []
    for w, a, s in zip(rows, alpha, shift, strict=True):
        for step in range(rounds + 1):
            codes = signs[(w[:, None] - s - signs @ a).abs().argmin(1)]
            error = (w - s - codes @ a).square().sum()
            if step < rounds:
                columns = (
                    torch.cat([torch.ones(len(w), 1, dtype=torch.float64), codes], 1)
                    if shifted
                    else codes
                )
                theta = torch.linalg.lstsq(columns, w[:, None]).solution[:, 0]
                s, a = (theta[0], theta[1:]) if shifted else (s, theta)
        errors.append(error)
    return torch.stack(errors)


def test_alternating_never_gets_worse_with_rounds(gauss):
    group = SortedGroups.of(gauss.view(-1, 128))
    start = greedy_planes(gauss.view(-1, 128), 3, True, False)[1:]
    errors = [alternate(group, *start, rounds, True)[0] for rounds in range(8)]
    assert all((after <= before * (1 + 1e-9)).all() for before, after in pairwise(errors))


def test_alternating_scales_with_the_weight(gauss):
    found = quantized("alternating", gauss[:32], 3)
    torch.testing.assert_close(quantized("alternating", gauss[:32] * 4, 3), found * 4)


def test_small_systems_are_solved_and_singular_ones_still_fit():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(50, 9, 4, generator=generator, dtype=torch.float64)
    columns[25:, :, 3] = columns[25:, :, 1]  # two equal planes
    y = torch.randn(50, 9, generator=generator, dtype=torch.float64)
    gram, right = columns.mT @ columns, (columns.mT @ y[..., None])[..., 0]
    fitted = (columns @ solve_positive(gram, right)[..., None])[..., 0]
    best = (columns @ torch.linalg.lstsq(columns, y[..., None], driver="gelsd").solution)[..., 0]
    torch.testing.assert_close(fitted, best, rtol=1e-6, atol=1e-6)


# --- gptq


def plain_gptq(weight, hessian, scheme, damp=0.01):
    """Frantar et al., algorithm 1 without blocks or order, in float64.

    The remaining Hessian is inverted explicitly at every step.
    """
    grid = qbench.get_method("rtn").quantize_weight(weight, scheme)
    _, scale, zero = grid.unpacked()
    group = weight.shape[1] // scale.shape[1]
    W, H = weight.double().clone(), hessian.double().clone()
    dead = H.diagonal() == 0
    H.diagonal()[dead] = H.diagonal()[~dead].mean()
    H += damp * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    for i in range(W.shape[1]):
        inverse = torch.linalg.inv(H[i:, i:])
        s, z = scale[:, i // group].double(), zero[:, i // group].double()
        q = s * ((W[:, i] / s + z).round().clamp(0, 2**scheme.bits - 1) - z)
        W[:, i:] -= ((W[:, i] - q) / inverse[0, 0])[:, None] * inverse[0]
        W[:, i] = q
    return W


def test_gptq_equals_a_plain_reference_in_float64():
    weight, stats, scheme = sample_weight()[:, :96], sample_stats(), Scheme(3, 32)
    hessian = stats.hessian[:96, :96].contiguous()
    method = qbench.get_method(
        "gptq", act_order=False, block_size=32, importance="none", groups="static"
    )
    found = (
        method.quantize_linear(weight, LinearStats(hessian, stats.count), scheme)
        .dequantize()
        .double()
    )
    differs = (found - plain_gptq(weight, hessian, scheme)).abs() > 1e-5
    assert differs.double().mean() < 0.002  # a tie in float32 may fall to the other side


def test_gptq_block_size_does_not_matter():
    stats, scheme = sample_stats(), Scheme(3, 64)
    small, large = (
        qbench.get_method("gptq", block_size=size)
        .quantize_linear(sample_weight(), stats, scheme)
        .dequantize()
        for size in (16, 192)
    )
    assert (small != large).double().mean() < 0.01


def test_gptq_without_tokens_is_rounding():
    stats = LinearStats(torch.zeros(192, 192), 0)
    found = qbench.get_method("gptq").quantize_linear(sample_weight(), stats, Scheme(3, 32))
    assert torch.equal(found.dequantize(), quantized("rtn", sample_weight(), 3, 32))


def test_gptq_with_fewer_tokens_than_inputs():
    x = normal(20, 192)
    found = qbench.get_method("gptq").quantize_linear(
        sample_weight(), LinearStats(x.T @ x / 10, 20), Scheme(3, 32)
    )
    assert torch.isfinite(found.dequantize()).all()


def test_damping_is_raised_until_the_hessian_is_definite():
    H = torch.diag(torch.tensor([1.0, -0.5]))
    U = inverse_cholesky(H, 0.1)  # mean 0.25: 0.1 and 1 times are not enough, 10 times is
    torch.testing.assert_close(U.T @ U, torch.linalg.inv(H + 2.5 * torch.eye(2)))
    with pytest.raises(MethodError, match="not positive definite with damping up to 10 "):
        inverse_cholesky(torch.diag(torch.tensor([1.0, -1.0])), 0.01)


def test_without_damping_a_singular_hessian_is_damped_a_little_and_what_is_not_says_so():
    H = torch.diag(torch.tensor([1.0, 0.0]))
    U = inverse_cholesky(H, 0.0)
    torch.testing.assert_close(U.T @ U, torch.linalg.inv(H + 5e-6 * torch.eye(2)))
    with pytest.raises(MethodError, match="up to 0.001 of its diagonal; .* or a larger damp$"):
        inverse_cholesky(torch.diag(torch.tensor([1.0, -1.0])), 0.0)


# --- bad input


def test_a_group_that_does_not_divide_lists_those_that_do():
    with pytest.raises(
        ConfigError,
        match=r"group_size=100 does not divide the 576 inputs of this layer; choose one of 16, 32",
    ):
        qbench.get_method("rtn").quantize_weight(torch.zeros(2, 576), Scheme(3, 100))


def test_unknown_names_and_parameters_are_corrected():
    with pytest.raises(ConfigError, match="unknown method 'gtpq'. Did you mean 'gptq'"):
        qbench.get_method("gtpq")
    with pytest.raises(
        ConfigError, match="unknown parameter of method 'gptq' 'dmap'. Did you mean 'damp'"
    ):
        qbench.get_method("gptq", dmap=1)
    with pytest.raises(ConfigError, match="rtn.clip='serach': Input should be 'search' or 'none'"):
        qbench.get_method("rtn", clip="serach")
    assert qbench.get_method("alternating", rounds="3", shift="false").rounds == 3
    assert math.isclose(qbench.get_method("gptq", damp="0.1").damp, 0.1)
