"""FlexRound, UniQuanF, FlexBCQ: gradients, the unification theorem, initialization, mapping."""

from __future__ import annotations

import pytest
import torch

import qbench
import qbench.experiment.grid
from qbench import LinearStats, Scheme
from qbench.methods.flexround import _Rounded
from qbench.methods.level_mapping import nearest_neighbour
from qbench.methods.levels import level_signs, nearest
from qbench.methods.mapped_weight import Start, UniQuanFWeight
from qbench.methods.uniquanf import UniQuanF
from samples import normal, seeded

PUBLISHED = {"initialization": "unified", "scale_bits": 16}  # starts of the papers


def gauss(rows=64, columns=256, dtype=torch.float32):
    return normal(rows, columns).to(dtype)


def random_state(bits, dtype=torch.float64, spread=0.05, **params):
    """A UniQuanF weight of 24 groups of 32 with every parameter moved away from its start."""
    X = gauss(24, 32, dtype)
    method = UniQuanF(**params)
    start = Start(*(part.to(dtype) for part in method.start(X.float(), bits)))
    state = UniQuanFWeight(X, start, 24, method)
    draw = seeded(1)
    for name, size in (
        ("d1", spread),
        ("d2", 4 * spread),
        ("d3", spread),
        ("a", spread / 2),
        ("zb", 2 * spread),
    ):
        parameter = getattr(state, name)
        parameter.data += size * torch.randn(parameter.shape, generator=draw, dtype=dtype)
    return state


# --- gradients


def plain_flexround(X, d1, d2, d3, z, n):
    y = X / (d1 + d2 + d3).exp() + z
    q = (y + (y.round() - y).detach()).clamp(0, n)
    return d1.exp() * (q - z)


def test_flexround_gradients_are_those_of_the_equation():
    X, z, n = gauss(6, 16, torch.float64), torch.full((6, 1), 3.0, dtype=torch.float64), 7
    draw = seeded(2)
    moved = [
        0.1 * torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((6, 1), (6, 16), (6, 1))
    ]
    moved[0] -= 1.2  # a step of 0.3: some weights clip
    ours, plain = ([part.clone().requires_grad_() for part in moved] for _ in range(2))
    found, expected = (
        _Rounded.apply(X, *ours, z, n, None),
        plain_flexround(X, *plain, z, n),
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    G = torch.randn(X.shape, generator=draw, dtype=torch.float64)
    found.backward(G), expected.backward(G)
    assert ((X / moved[0].exp() + z).abs() > n + 1).any(), (
        "nothing clips: the test shows too little"
    )
    for ours_, plain_ in zip(ours, plain, strict=True):
        torch.testing.assert_close(ours_.grad, plain_.grad, rtol=1e-10, atol=1e-12)


def plain_uniquanf(state, filtering):
    """The paper's equations with autograd: values and straight-through estimates as written."""
    h, signs = (2**state.bits - 1) / 2, state.signs
    x = state.X / (state.d1 + state.d2 + state.d3).exp() + state.z
    q = (state.a @ signs.T).gather(1, state.codes.long())
    y, levels = x - state.zb - h, state.a @ signs.T
    reach = state.a.abs().amin(1, keepdim=True)
    far = {
        "distance": (y - q).abs() > reach,
        "range": (y > levels.amax(1, True) + reach) | (y < levels.amin(1, True) - reach),
        "none": torch.zeros_like(q) > 0,
    }[filtering]
    q, u = torch.where(far, q.detach(), q), torch.where(far, x.detach(), x)
    return state.d1.exp() * (q + state.zb + h + (u - u.detach()) - state.z), far


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("filtering", ["distance", "range", "none"])
def test_uniquanf_gradients_are_those_of_the_paper(bits, filtering):
    state = random_state(bits, gradient_filtering=filtering, learn_shift=True)
    found = state().view_as(state.X)
    expected, far = plain_uniquanf(state, filtering)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    G = torch.randn(state.X.shape, generator=seeded(3), dtype=torch.float64)
    names = ("d1", "d2", "d3", "a", "zb")
    ours = torch.autograd.grad(found, [getattr(state, name) for name in names], G)
    plain = torch.autograd.grad(
        expected, [getattr(state, name) for name in names], G, allow_unused=True
    )
    for name, mine, theirs in zip(names, ours, plain, strict=True):
        if name == "zb":  # the paper's x does not depend on z_B, the level does
            theirs = (G * state.d1.exp()).sum(1, keepdim=True)
        torch.testing.assert_close(
            mine, theirs, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )
    if filtering != "none":
        assert far.any() and (ours[1][far] == 0).all(), "a filtered weight has no gradient in d2"


def test_a_filtered_weight_still_moves_the_grid():
    state = random_state(2)
    state.X = state.X + 100  # all of them out of reach
    w = state().view_as(state.X)
    G = torch.ones_like(w)
    (g1,) = torch.autograd.grad(w, [state.d1], G)
    torch.testing.assert_close(g1, w.detach().sum(1, keepdim=True))


# --- theorem 1


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_what_is_merged_is_what_was_trained(bits, dtype, tolerance):
    state = random_state(bits, dtype)
    state.a.data[3] *= -1  # scales may change their sign
    with torch.no_grad():
        trained = state().view_as(state.X)
        alpha, shift, planes = state.merged()
    merged = shift[:, None] + ((planes * 2.0 - 1).to(dtype) * alpha.T[:, :, None]).sum(0)
    assert (alpha >= 0).all()
    assert (merged - trained).abs().max() <= tolerance * trained.abs().max()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_is_stored_is_plain_binary_coding_of_the_same_size(bits):
    weight, scheme = gauss(), Scheme(bits, 64)
    state = qbench.get_method("uniquanf", scale_bits=16).prepare(weight, scheme)
    with torch.no_grad():
        found, trained = state.export(), state()
    assert (found.dequantize() - trained).abs().max() <= 2e-3 * weight.abs().max()  # float16 scales
    plain = qbench.get_method("alternating").quantize_weight(weight, scheme)
    sizes = [
        {part: (t.shape, t.dtype) for part, t in format.to_tensors().items()}
        for format in (found, plain)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_is_trained_is_what_is_stored_in_few_bits(bits):
    weight, scheme = gauss(), Scheme(bits, 64)
    state = qbench.get_method("uniquanf").prepare(weight, scheme)
    draw = seeded(7)
    with torch.no_grad():
        for parameter in (state.d1, state.d2, state.a, state.zb):
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
        state.a[3, -1] = -0.01
        found, trained = state.export(), state()
    assert state.steps is not None and (found.alpha >= 0).all()
    torch.testing.assert_close(found.dequantize(), trained, rtol=1e-4, atol=1e-5)
    alpha = found.alpha.float() / state.steps.step[..., None]
    assert (alpha - alpha.round()).abs().max() < 0.1
    assert found.bits == bits


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_starts_from_the_codes_of_alternating_h(bits):
    weight, scheme = gauss(16, 64), Scheme(bits, 16)
    x = gauss(200, 64) @ gauss(64, 64)
    stats = LinearStats(2 / 200 * x.T @ x, 200)
    found = qbench.get_method("uniquanf").prepare(weight, scheme, stats).export()
    expected = qbench.get_method("alternating-h", rounds=15).quantize_linear(weight, stats, scheme)
    assert torch.equal(found.alpha, expected.alpha) and torch.equal(found.shift, expected.shift)
    # A value in the middle of two levels may go to either.
    assert (found.dequantize() != expected.dequantize()).float().mean() < 0.002


# --- initialization


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_the_unified_start_is_never_above_rtn(bits):
    weight, scheme = gauss() * torch.logspace(-3, 1, 64)[:, None], Scheme(bits, 64)
    method = qbench.get_method("uniquanf", initialization="unified", scale_bits=16)
    state = method.prepare(weight, scheme)
    with torch.no_grad():
        errors = (state() - weight).double().square().view(-1, 64).sum(1)
    for zero_point in ("integer", "real"):
        rtn = (
            qbench.get_method("rtn", zero_point=zero_point)
            .quantize_weight(weight, scheme)
            .dequantize()
        )
        assert (errors <= (rtn - weight).double().square().view(-1, 64).sum(1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits, expected", [(2, 0.116316), (3, 0.033628), (4, 0.009427)])
def test_the_published_start(bits, expected):
    """Figures of the published code (float32, on a CPU)."""
    weight = gauss(256, 1024)
    with torch.no_grad():
        state = qbench.get_method("uniquanf", faithful=True).prepare(weight, Scheme(bits, 128))
        assert (state() - weight).square().mean().item() == pytest.approx(expected, rel=1e-4)


def test_the_published_rates_filter_and_numbers():
    method = qbench.get_method("uniquanf", faithful=True, scale_bits=7, epochs=3).decided(3)
    assert (method.lr, method.lr_alpha, method.holdout, method.scale_bits) == (5e-3, 5e-4, 0, 16)
    assert (method.gradient_filtering, method.mapping) == ("distance", "local")
    assert not method.shift and not method.learn_shift and method.epochs == 3
    state = method.prepare(gauss(), Scheme(3, 64))
    assert [group["lr"] for group in state.groups()] == [5e-3, 5e-4]
    assert state.export().alpha.dtype == torch.float16
    assert (method.loss, method.mixing, method.head) == ("mse", 0.5, 0)
    set_otherwise = qbench.get_method("uniquanf", faithful=True, lr=1e-3, mixing=0.0, head=0.5)
    decided = set_otherwise.decided(3)
    assert (decided.lr, decided.loss, decided.mixing, decided.head) == (1e-3, "mse", 0, 0.5)
    flexbcq = qbench.get_method("flexbcq", faithful=True).decided(3)
    assert (flexbcq.mapping, flexbcq.grid, flexbcq.loss) == ("full", 50, "mse")


@pytest.mark.slow
@pytest.mark.parametrize("bits, expected", [(2, 0.112479), (3, 0.031533)])
def test_the_start_of_flexbcq(bits, expected):
    weight = gauss(256, 1024)
    with torch.no_grad():
        state = qbench.get_method("flexbcq", **PUBLISHED).prepare(weight, Scheme(bits, 128))
        assert (state() - weight).square().mean().item() == pytest.approx(expected, rel=1e-3)


def test_a_separate_start_is_worse():
    weight = gauss() + 0.5
    errors = {}
    for params in ({}, {"shift": False}, {"initialization": "separate"}):
        with torch.no_grad():
            method = qbench.get_method("uniquanf", **{"initialization": "unified", **params})
            state = method.prepare(weight, Scheme(3, 64))
            errors[next(iter(params), "unified")] = (state() - weight).square().mean().item()
    assert errors["unified"] <= errors["shift"] < errors["initialization"] / 1.1


def test_at_the_grid_of_uniform_levels_it_is_rounding():
    weight, bits = gauss(8, 64), 3
    rtn = qbench.get_method("rtn", zero_point="real").quantize_weight(weight, Scheme(bits, 64))
    _, scale, zero = rtn.unpacked()
    a = torch.tensor([2.0, 1.0, 0.5]).expand(8, 3)
    start = Start(scale[:, 0], zero[:, 0], a, torch.zeros(8))
    state = UniQuanFWeight(weight, start, 8, UniQuanF())
    torch.testing.assert_close(state().detach(), rtn.dequantize(), rtol=1e-4, atol=1e-5)


# --- mapping


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_bisection_finds_the_nearest_of_any_levels(bits):
    draw = seeded(bits)
    levels = (
        torch.randn(40, bits, generator=draw) @ level_signs(bits, torch.device("cpu")).float().T
    )
    y = 2 * torch.randn(40, 64, generator=draw)
    found = levels.gather(1, nearest(y, levels))
    best = (y[..., None] - levels[:, None]).abs().amin(-1)
    torch.testing.assert_close((y - found).abs(), best, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mapping", ["exact", "full"])
def test_the_full_mapping_gives_the_same_codes(mapping):
    state = random_state(4, mapping=mapping)
    with torch.no_grad():
        state(), state.remap()
        other = random_state(4)
        assert (state() - other()).abs().max() < 1e-9


def test_neighbours_in_sorted_order_are_right_and_in_pattern_order_they_are_not():
    draw = seeded(5)
    levels = (torch.rand(500, 4, generator=draw) + 0.2) @ level_signs(
        4, torch.device("cpu")
    ).float().T
    y = torch.randn(500, 32, generator=draw)
    codes = nearest(y, levels)
    y = y + 0.3 * torch.randn(y.shape, generator=draw)
    best = (y[..., None] - levels[:, None]).abs().amin(-1)
    wrong = {}
    for by_pattern in (False, True):
        found = nearest_neighbour(y, levels, codes.to(torch.uint8), by_pattern)
        wrong[by_pattern] = (
            ((y - levels.gather(1, found)).abs() > best + 1e-6).float().mean().item()
        )
    assert wrong[False] < 0.5 * wrong[True]
    near = (codes.long() >= 0) & ((levels.gather(1, codes) - y).abs() < 1e-3)
    assert torch.equal(
        nearest_neighbour(y, levels, codes.to(torch.uint8), False)[near], codes[near]
    )


@pytest.mark.parametrize("period, faithful, expected", [
    (1, False, [1, 2, 3, 4, 5, 6]),
    (2, False, [1, 3, 5]),
    (2, True, [1, 2, 4, 6]),  # as published
    (4, False, [1, 5]),
    (0, False, [1]),
])  # fmt: skip
def test_codes_are_mapped_every_period(period, faithful, expected, monkeypatch):
    mapped = []
    original = UniQuanFWeight.remap

    def noted(self):
        mapped.append(self.calls + 1)
        return original(self)

    state = random_state(3, period=period, faithful=faithful)
    monkeypatch.setattr(UniQuanFWeight, "remap", noted)
    for _ in range(6):
        state()
    assert mapped == expected


def test_what_the_published_recipe_exports_does_not_change_its_training():
    state = random_state(3, faithful=True)
    state()
    codes = state.codes.clone()
    with torch.no_grad():
        state.d2 += 0.2
    state.export()
    assert torch.equal(state.codes, codes)
    state()
    assert not torch.equal(state.codes, codes)


def test_between_mappings_codes_stay_and_levels_move():
    state = random_state(3, period=2)
    with torch.no_grad():
        before, codes = state(), state.codes.clone()
        state.a += 0.05
        after = state()
    assert torch.equal(codes, state.codes) and not torch.equal(before, after)


def test_training_keeps_one_byte_per_weight():
    state = random_state(4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        state()
    own = {state.X.data_ptr(), state.d2.data_ptr()}
    assert all(tensor.numel() < state.X.numel() or tensor.data_ptr() in own for tensor in saved)
    assert state.codes.dtype == torch.uint8 and state.codes.numel() == state.X.numel()


def test_separate_parts_of_the_ablation_run():
    variants = qbench.experiment.grid.SWEEPS["uniquanf-ablation"]
    for variant in variants:
        params = {key: value for key, value in variant.items() if key != "method"}
        method = qbench.get_method(variant["method"], **params)
        if hasattr(method, "prepare"):
            weight = method.prepare(gauss(8, 64), Scheme(3, 32)).export()
            assert torch.isfinite(weight.dequantize()).all()
