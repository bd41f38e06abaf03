"""UniSVQ and its lattice format: against explicit matrices, float64 references, known errors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import qbench
from qbench import LinearStats, Scheme
from qbench.calibration.input_statistics import input_statistics
from qbench.checks.samples import sample_inputs, sample_stats, sample_weight
from qbench.contracts import BlockInputs
from qbench.errors import ConfigError, MethodError, StoreError
from qbench.formats import bits_per_weight, from_tensors
from qbench.formats.hadamard import block_length, hadamard
from qbench.formats.lattice import features_of
from qbench.methods.codebooks import RotatedGrid, SignMap, gaussian_map, rotation
from qbench.methods.rotation import random_signs, two_sided
from qbench.methods.vector_rounding import Curvature, block_ldlq, sweep
from qbench.models.blocks import linears
from samples import integers, lattice_weight, normal, seeded, token_ids

PAIR = ["unisvq", "unisvq-untied"]


def sylvester(n):
    """Entry by entry: the sign is the parity of the bits that the row and the column share."""
    rows = [[(-1) ** (i & j).bit_count() for j in range(n)] for i in range(n)]
    return torch.tensor(rows, dtype=torch.float64) / math.sqrt(n)


def transform_matrix(n):
    block = block_length(n)
    return torch.block_diag(*[sylvester(block)] * (n // block))


def codebook(kind, d, bits):
    if kind == "codes":
        return RotatedGrid(rotation(d, seeded(3)), bits)
    return SignMap(normal(d, d * bits, seed=4) * 0.5, bits)


def all_codewords(book, d, bits):
    """(codewords, d) float64 in the order of their codes, and the codes."""
    codes = torch.cartesian_prod(*[torch.arange(2**bits)] * d).view(-1, d)
    if book.features == "codes":
        return codes.double() @ book.map.double().T + book.offset.double(), codes
    signs = [(codes >> (bits - 1 - plane) & 1) * 2.0 - 1 for plane in range(bits)]
    return torch.cat(signs, 1).double() @ book.map.double().T, codes


# --- the transform


@pytest.mark.parametrize(
    "n, block", [(1, 1), (7, 1), (64, 64), (96, 32), (576, 64), (1536, 128), (256, 256)]
)
def test_the_transform_is_blocks_of_sylvester_matrices_and_its_own_inverse(n, block):
    assert block_length(n) == block
    X = normal(n, 3, dtype=torch.float64)
    H = transform_matrix(n)
    torch.testing.assert_close(hadamard(X, block, 0), H @ X)
    torch.testing.assert_close(hadamard(X.T, block, 1), X.T @ H)
    torch.testing.assert_close(hadamard(hadamard(X, block, 0), block, 0), X)
    assert not hadamard(torch.zeros(n, 2), block, 0).any()


def test_a_large_transform_is_orthonormal_and_does_not_change_its_input():
    X = normal(4, 4096)
    before = X.clone()
    Y = hadamard(X, 4096, 1)
    assert torch.equal(X, before)
    torch.testing.assert_close(Y @ Y.T, X @ X.T, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(hadamard(Y, 4096, 1), X, rtol=1e-5, atol=1e-5)


# --- the format


def lattice(kind, bits, d=4, shape=(6, 24), dtype=torch.float16):
    """The codes of a random weight, and the weight."""
    codes = integers(shape, 0, 2**bits, seed=1)
    return codes, lattice_weight(*shape, bits, d, kind, offset=kind == "codes", dtype=dtype)


@pytest.mark.parametrize("kind", ["codes", "signs"])
@pytest.mark.parametrize(
    "bits, d, shape",
    [(2, 4, (6, 24)), (3, 4, (16, 40)), (2, 1, (5, 7)), (3, 3, (1, 9)), (1, 2, (2, 6))],
)
def test_a_lattice_weight_is_what_the_matrices_say(kind, bits, d, shape):
    codes, weight = lattice(kind, bits, d, shape)
    rows = []
    for row in codes.tolist():
        vectors = [row[i : i + d] for i in range(0, len(row), d)]
        if kind == "signs":
            vectors = [
                [((z >> p) & 1) * 2 - 1 for p in reversed(range(bits)) for z in v] for v in vectors
            ]
        rows.append(torch.tensor(vectors, dtype=torch.float64) @ weight.map.double().T)
    W = torch.stack(rows)
    W = (W if weight.offset is None else W + weight.offset.double()).flatten(1)
    T_out, T_in = transform_matrix(shape[0]), transform_matrix(shape[1])
    expected = torch.diag(weight.sv.double()) @ T_out.T @ W @ T_in @ torch.diag(weight.su.double())
    assert weight.dequantize().dtype == torch.float32
    torch.testing.assert_close(weight.dequantize().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["codes", "signs"])
def test_what_is_read_is_what_was_written(kind, dtype):
    _, weight = lattice(kind, 3, dtype=dtype)
    again = from_tensors("lattice", weight.to_tensors(), weight.spec())
    assert (
        dataclasses.asdict(again).keys() == dataclasses.asdict(weight).keys()
        and again.blocks == weight.blocks
    )
    assert again.shape == (6, 24) and torch.equal(again.dequantize(), weight.dequantize())
    numbers = 4 * (4 if kind == "codes" else 12) + (4 if kind == "codes" else 0) + 6 + 24
    stored = 6 * 9 * 8 + numbers * 8 * dtype.itemsize
    assert bits_per_weight([weight])["total"] == pytest.approx(stored / (6 * 24))


def test_tied_codes_are_a_special_case_of_free_signs():
    _, tied = lattice("codes", 3, dtype=torch.float32)
    free = torch.cat([tied.map * 2.0 ** (1 - plane) for plane in range(3)], 1)
    constant = tied.offset + 3.5 * tied.map.sum(1)
    same = dataclasses.replace(tied, map=free, offset=constant, features="signs")
    torch.testing.assert_close(same.dequantize(), tied.dequantize(), rtol=1e-5, atol=1e-5)


def test_a_map_that_does_not_fit_is_refused():
    _, weight = lattice("codes", 2)
    with pytest.raises(
        StoreError, match=r"a lattice map of shape \(4, 4\) does not fit features='signs' of 2 bits"
    ):
        from_tensors("lattice", weight.to_tensors(), weight.spec() | {"features": "signs"})
    with pytest.raises(StoreError, match="cannot be built from parts"):
        from_tensors("lattice", {"codes": weight.codes}, weight.spec())


# --- the nearest codeword


@pytest.mark.parametrize("kind", ["codes", "signs"])
@pytest.mark.parametrize("d, bits", [(1, 2), (1, 3), (2, 2), (3, 2), (4, 2), (2, 3), (3, 3)])
def test_the_nearest_codeword_is_that_of_full_search(kind, d, bits):
    book = codebook(kind, d, bits)
    T = normal(d, 500, seed=5) * 1.5
    words, codes = all_codewords(book, d, bits)
    distances = torch.cdist(T.T.double(), words)
    z, values = book.nearest(T)
    assert z.dtype == torch.uint8 and z.shape == values.shape == T.shape
    torch.testing.assert_close(
        (T - values).norm(dim=0).double(), distances.amin(1), rtol=1e-5, atol=1e-5
    )
    assert (codes[distances.argmin(1)] == z.T).all(1).double().mean() > 0.99  # but for ties
    f = features_of(z.T.contiguous(), d, bits, kind)[:, 0]
    offset = 0 if book.offset is None else book.offset
    torch.testing.assert_close((f @ book.map.T + offset).T, values, rtol=1e-5, atol=1e-5)


def test_4096_codewords_are_searched_in_parts():
    book = SignMap(normal(4, 12, seed=6), 3)
    T = normal(4, 1200, seed=7)
    words, _ = all_codewords(book, 4, 3)
    best = torch.cdist(T.T.double(), words).amin(1)
    torch.testing.assert_close(
        (T - book.nearest(T)[1]).norm(dim=0).double(), best, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, d, bits, expected",
    [
        ("unisvq", 1, 2, 0.1188),
        ("unisvq", 2, 2, 0.1188),
        ("unisvq", 4, 2, 0.1188),
        ("unisvq", 4, 3, 0.0374),
        ("unisvq-untied", 1, 2, 0.1181),
        ("unisvq-untied", 2, 2, 0.1105),
        ("unisvq-untied", 4, 2, 0.0995),
    ],
)
def test_only_the_untied_form_has_a_coding_gain_on_gaussian_weights(name, d, bits, expected):
    book = qbench.get_method(name).codebook(d, bits, torch.device("cpu"))
    X = normal(d, 80000 // d, seed=8)
    X = X / X.square().mean().sqrt()
    values = book.nearest(X * book.spread)[1] / book.spread
    assert (X - values).square().mean().item() == pytest.approx(expected, rel=0.03)


@pytest.mark.slow
def test_the_fitted_map_is_kept_and_training_does_not_change_it():
    M = gaussian_map(2, 2, 0)
    before = M.clone()
    weight = qbench.get_method("unisvq-untied", dimension=2).start(sample_weight(), Scheme(2))
    weight.map.data += 1
    assert gaussian_map(2, 2, 0) is M and torch.equal(M, before)
    assert not torch.equal(gaussian_map.__wrapped__(2, 2, 1), M)
    assert torch.equal(gaussian_map.__wrapped__(2, 2, 0), M)


# --- BlockLDLQ and the sweeps


def problem(n, rows, d, seed=0):
    """W (n, rows) of unit variance and a correlated Hessian (n, n), factored for vectors of d."""
    X = normal(3 * n, n // 3, seed=seed) @ normal(n // 3, n, seed=seed + 1) / math.sqrt(n / 3)
    X += 0.5 * normal(3 * n, n, seed=seed + 2)
    H = X.T @ X / len(X)
    H = H / H.diagonal().mean() + 1e-2 * torch.eye(n)
    return normal(n, rows, seed=seed + 3), Curvature.factor(H, d, 1e-2)


def plain_block_ldlq(W, H, words, d):
    """Row by row, vector by vector: solve for the earlier vectors, given the later errors; float64.

    With the later errors fixed, E_k = -S_kk^-1 S_k,>k E_>k is best, S the Schur complement of the
    vectors before, which are still free to adapt.
    """
    n = len(W)
    found = torch.empty_like(W)
    for row in range(W.shape[1]):
        w, error = W[:, row], torch.zeros(n, dtype=torch.float64)
        for k in range(n - d, -1, -d):
            here, later = slice(k, k + d), slice(k + d, n)
            S = H[k:, k:]
            if k:
                S = S - H[k:, :k] @ torch.linalg.solve(H[:k, :k], H[:k, k:])
            wanted = w[here] + torch.linalg.solve(S[:d, :d], S[:d, d:]) @ error[later]
            found[here, row] = words[(words - wanted).norm(dim=1).argmin()]
            error[here] = w[here] - found[here, row]
    return found


@pytest.mark.parametrize("kind", ["codes", "signs"])
@pytest.mark.parametrize("n, d", [(24, 4), (132, 4), (129, 3), (20, 1)])
def test_block_ldlq_equals_a_plain_reference_in_float64(kind, n, d):
    W, curvature = problem(n, 5, d)
    book = codebook(kind, d, 2)
    codes, E = block_ldlq(W, curvature, book)
    words, _ = all_codewords(book, d, 2)
    plain = plain_block_ldlq(W.double(), curvature.H.double(), words, d)
    differs = ((W - E).double() - plain).abs() > 1e-4
    assert (
        differs.any(0).double().mean() <= 0.2
    )  # a tie in float32 changes all that follows in its row
    f = features_of(codes.T.contiguous(), d, 2, kind) @ book.map.T
    torch.testing.assert_close(
        (f if book.offset is None else f + book.offset).flatten(1).T, W - E, rtol=0, atol=1e-4
    )


def test_the_factor_is_unit_block_lower_triangular():
    _, curvature = problem(24, 1, 4)
    L = curvature.L.double()
    blocks = [L[k : k + 4, k : k + 4] for k in range(0, 24, 4)]
    torch.testing.assert_close(
        torch.stack(blocks), torch.eye(4, dtype=torch.float64).expand(6, 4, 4), rtol=0, atol=1e-5
    )
    D = torch.linalg.inv(L) @ curvature.H.double() @ torch.linalg.inv(L).T
    mask = torch.block_diag(*[torch.ones(4, 4)] * 6) == 0
    assert D[mask].abs().max() < 1e-4 and L.triu(4).abs().max() < 1e-5
    kk = curvature.H[8:12, 8:12].double()
    torch.testing.assert_close(
        curvature.inverse[2].double() @ kk, torch.eye(4).double(), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["codes", "signs"])
@pytest.mark.parametrize("n, d", [(96, 4), (201, 3)])
def test_no_sweep_raises_the_error_of_any_row(kind, n, d):
    W, curvature = problem(n, 40, d)
    book = codebook(kind, d, 2)
    codes, E = block_ldlq(W, curvature, book)
    H = curvature.H.double()
    errors = [(E.double() * (H @ E.double())).sum(0)]
    steps = []
    for _ in range(6):
        steps.append(sweep(W, E, codes, curvature, book))
        errors.append((E.double() * (H @ E.double())).sum(0))
        assert (errors[-1] <= errors[-2] * (1 + 1e-6)).all()
        f = features_of(codes.T.contiguous(), d, 2, kind) @ book.map.T
        values = (f if book.offset is None else f + book.offset).flatten(1).T
        torch.testing.assert_close(values, W - E, rtol=0, atol=1e-4)
    assert errors[-1].sum() < 0.95 * errors[0].sum() and steps[-1] < steps[0]


def test_a_hessian_that_is_not_definite_gets_more_regularization_or_a_sentence():
    nearly = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.05]))
    found = Curvature.factor(nearly, 2, 1e-2)
    torch.testing.assert_close(found.H, nearly + 0.1 * torch.eye(4))
    with pytest.raises(
        MethodError, match="not positive definite with 10 of its mean diagonal added; give more"
    ):
        Curvature.factor(torch.diag(torch.tensor([1.0, -100.0])), 1, 1e-2)


# --- the method on one weight


@pytest.mark.parametrize("name", PAIR)
def test_at_two_bits_it_is_far_better_than_rounding(name):
    weight, stats = sample_weight(), sample_stats()
    method = qbench.get_method(name, epochs=0)
    curvature = method.curvature(weight, Scheme(2), stats)
    found = method.start(weight, Scheme(2), curvature).export()
    plain = qbench.get_method("rtn").quantize_weight(weight, Scheme(2, 32))

    def error(candidate):
        difference = (candidate.dequantize() - weight).double()
        return ((difference @ stats.hessian.double()) * difference).sum().item()

    assert error(found) < 0.5 * error(plain)
    assert bits_per_weight([found])["codes"] == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize("shape", [(24, 36), (10, 18), (7, 15), (1, 13), (5, 1)])
@pytest.mark.parametrize("bits", [2, 3])
def test_any_shape(name, shape, bits):
    weight = normal(*shape)
    method = qbench.get_method(name, epochs=0, dimension=2)
    found = method.start(weight, Scheme(bits)).export()
    assert found.shape == shape and torch.isfinite(found.dequantize()).all()
    assert (found.dequantize() - weight).square().mean() < 0.5 * weight.square().mean()


def test_the_dimension_divides_the_inputs_and_bounds_the_codewords():
    def dimensions(name, bits, dimension):
        method = qbench.get_method(name, dimension=dimension)
        return [method.curvature(torch.zeros(2, n), Scheme(bits)).d for n in (8, 18, 15, 13)]

    assert dimensions("unisvq", 2, 4) == [4, 3, 3, 1]
    assert dimensions("unisvq", 2, 8) == [8, 6, 5, 1]
    assert dimensions("unisvq-untied", 2, 8) == [4, 6, 5, 1]
    assert dimensions("unisvq-untied", 3, 8) == [4, 3, 3, 1]


@pytest.mark.parametrize("name", PAIR)
def test_zero_weights_stay_zero_and_zero_inputs_are_as_none(name):
    method = qbench.get_method(name, dimension=2)
    zero = method.start(torch.zeros(8, 12), Scheme(2))
    assert not zero.export().dequantize().any() and not zero().any()
    weight = normal(8, 12)
    weight[3] = 0
    found = [
        method.start(weight, Scheme(2), method.curvature(weight, Scheme(2), stats))
        .export()
        .dequantize()
        for stats in (
            None,
            LinearStats(torch.zeros(12, 12), 0),
            LinearStats(torch.zeros(12, 12), 9),
        )
    ]
    assert not found[0][3].any() and torch.isfinite(found[0]).all()
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_inputs_of_any_size_have_the_same_curvature():
    weight, stats = sample_weight(), sample_stats()
    method = qbench.get_method("unisvq")
    usual = method.curvature(weight, Scheme(2), stats).H
    tiny = LinearStats(stats.hessian * 1e-39, stats.count)  # numbers below float32's normal ones
    torch.testing.assert_close(method.curvature(weight, Scheme(2), tiny).H, usual, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize("size", [0.01, 100.0])
def test_an_input_that_is_small_where_its_weights_are_large_costs_nothing(name, size):
    """The layer computes the same, and is to be quantized as well."""
    weight, stats = sample_weight(), sample_stats()
    sizes = torch.ones(192)
    sizes[5::16] = size
    method = qbench.get_method(name)

    def error(weight, stats):
        curvature = method.curvature(weight, Scheme(2), stats)
        E = method.start(weight, Scheme(2), curvature).export().dequantize() - weight
        return ((E @ stats.hessian) * E).sum().item()

    scaled = LinearStats(stats.hessian / sizes / sizes[:, None], stats.count)
    assert error(weight * sizes, scaled) < 1.2 * error(weight, stats)


@pytest.mark.parametrize("name", PAIR)
def test_inputs_whose_weights_differ_in_size_are_better_scaled(name):
    sizes = torch.exp(0.7 * torch.randn(192, generator=torch.Generator().manual_seed(1)))
    weight, stats = sample_weight() * sizes, sample_stats()

    def error(**params):
        method = qbench.get_method(name, **params)
        curvature = method.curvature(weight, Scheme(2), stats)
        E = method.start(weight, Scheme(2), curvature).export().dequantize() - weight
        return ((E @ stats.hessian) * E).sum().item()

    assert error() < 0.8 * error(scaled_inputs=False)


def test_the_metric_survives_the_transform():
    """tr(E H E^T) is the same before and after, up to the scales of rows."""
    weight, stats = sample_weight(), sample_stats()
    method = qbench.get_method("unisvq", regularization=1e-3)
    curvature = method.curvature(weight, Scheme(2), stats)
    su = method.input_scales(weight)
    G = stats.hessian * su * su[:, None]
    H = stats.hessian / G.diagonal().mean() + 1e-3 * torch.diag(su**-2)
    E = two_sided(weight * random_signs(48, 1, weight)[:, None] / su)
    before, after = ((weight @ H) * weight).sum(), ((E @ curvature.H) * E).sum()
    torch.testing.assert_close(after, before, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", PAIR)
def test_the_trained_weight_is_what_is_stored_and_all_parameters_have_gradients(name):
    state = qbench.get_method(name, dimension=2).start(sample_weight(), Scheme(2))
    found = state.export()
    torch.testing.assert_close(state(), found.dequantize(), rtol=0, atol=1e-2)  # float16 parameters
    state().square().sum().backward()
    parameters = [p for group in state.groups() for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in state.parameters()}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    with torch.no_grad():
        for p in parameters:
            p.mul_(1.5)
    assert torch.equal(found.dequantize(), found.dequantize()) and not torch.equal(
        found.map, state.export().map
    )


def test_the_gradient_is_that_of_finite_differences():
    state = qbench.get_method("unisvq", dimension=2).start(normal(4, 8), Scheme(2)).double()
    state.su, state.sv, probe = (
        state.su.double(),
        state.sv.double(),
        normal(4, 8, seed=9, dtype=torch.float64),
    )
    from qbench.formats.lattice import decode

    f = features_of(state.codes, 2, 2, "codes").double()

    def weight(map, offset, u, v):
        return (
            decode(f, map, offset, state.su * u, state.sv * v, state.start.blocks) * probe
        ).sum()

    assert torch.autograd.gradcheck(weight, (state.map, state.offset, state.u, state.v))


# --- whole blocks and models


def test_statistics_are_those_of_the_quantized_stream_and_are_shared(tiny):
    block = tiny().model.layers[0].mlp
    quantized, full = [normal(2, 8, 32, seed=s) for s in (0, 1)], [normal(2, 8, 32, seed=5)] * 2
    inputs = BlockInputs(quantized, full, [((), {})] * 2)
    found = input_statistics(block, inputs)
    rows = torch.cat(quantized).flatten(0, 1).double()
    assert found["gate_proj"] is found["up_proj"] and found["down_proj"].hessian.shape == (64, 64)
    assert found["up_proj"].count == 32 and found["down_proj"].count == 32
    torch.testing.assert_close(
        found["up_proj"].hessian.double(), 2 / 32 * rows.T @ rows, rtol=1e-4, atol=1e-5
    )
    assert all(not layer._forward_pre_hooks for layer in linears(block).values())
    with pytest.raises(MethodError, match="the inputs of gate_proj are not finite"):
        input_statistics(block, BlockInputs([quantized[0] * torch.inf], full, [((), {})]))
    assert all(not layer._forward_pre_hooks for layer in linears(block).values())


def test_a_layer_that_no_token_reaches_has_the_identity():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = (
                nn.utils.skip_init(nn.Linear, 8, 8, bias=False) for _ in range(2)
            )
            for layer in (self.used, self.unused):
                layer.weight.data.copy_(normal(8, 8))

        def forward(self, x):
            return self.used(x)

    block, hidden = Routed(), normal(2, 16, 8)
    inputs = BlockInputs([hidden], [hidden], [((), {})])
    method = qbench.get_method("unisvq", epochs=1, batch_size=1)
    with torch.no_grad():
        result = method.quantize_block(block, inputs, [block(hidden)], Scheme(3))
    expected = method.start(normal(8, 8), Scheme(3)).export()
    assert torch.equal(result.weights["unused"].codes, expected.codes) and result.weights[
        "used"
    ].shape == (8, 8)


def test_training_lowers_the_error_of_the_block():
    hidden, layer = (
        sample_inputs().view(8, -1, 192),
        nn.utils.skip_init(nn.Linear, 192, 48, bias=False),
    )
    layer.weight.data.copy_(sample_weight())
    block = nn.Sequential(layer)
    streams = list(hidden.split(2))
    inputs = BlockInputs(streams, streams, [((), {})] * 4)
    targets = [block(x).detach() for x in streams]
    method = qbench.get_method("unisvq", epochs=20, lr_map=2e-3, lr_signs=2e-3, mixing=1.0)
    with torch.no_grad():
        log = method.quantize_block(block, inputs, targets, Scheme(2)).log
    assert log["final"] < 0.97 * log["initial"] and torch.equal(layer.weight, sample_weight())


@pytest.mark.parametrize(
    "name, scales", [("unisvq", (0.5, 0.71, 0.83, 1.2)), ("unisvq-untied", (0.5, 0.79, 1.0, 1.3))]
)
def test_the_searched_scale_is_nearly_as_good_as_any(name, scales):
    weight, stats = sample_weight() ** 3, sample_stats()

    def error(scale):
        method = qbench.get_method(name, scale=scale)
        E = (
            method.start(weight, Scheme(2), method.curvature(weight, Scheme(2), stats))
            .export()
            .dequantize()
            - weight
        )
        return ((E @ stats.hessian) * E).sum().item()

    fixed = [error(scale) for scale in scales]
    assert error(None) < 1.05 * min(fixed) < 0.9 * max(fixed)


def test_wrong_parameters_are_one_sentence():
    with pytest.raises(ConfigError, match="scale=0.0: dimension must be 1 or more"):
        qbench.get_method("unisvq", scale=0)
    with pytest.raises(ConfigError, match="dimension=0"):
        qbench.get_method("unisvq-untied", dimension=0)
    with pytest.raises(ConfigError, match="epochs=-1"):
        qbench.get_method("unisvq", epochs=-1)
    with pytest.raises(ConfigError, match="group_size=100 does not divide"):
        qbench.get_method("unisvq").start(sample_weight(), Scheme(2, 100))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIR)
def test_a_model_end_to_end_is_deterministic_and_comes_back_bit_for_bit(tiny, tmp_path, name):
    tokens = token_ids(6, 24, vocabulary=256)
    method = qbench.get_method(name, epochs=2, batch_size=2, dimension=2)
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made.append(qbench.quantize(tiny(), method, Scheme(2, 16), tokens))
    again = qbench.load(made[0].save(tmp_path / "saved"))
    assert made[0].weights.keys() == again.weights.keys() == made[1].weights.keys()
    for layer, weight in made[0].weights.items():
        assert weight.format == "lattice"
        assert torch.equal(weight.dequantize(), made[1].weights[layer].dequantize())
        assert torch.equal(weight.dequantize(), again.weights[layer].dequantize())
        assert torch.equal(weight.dequantize(), made[0].model.get_submodule(layer).weight)
    assert (
        again.bits_per_weight == made[0].bits_per_weight and again.bits_per_weight["codes"] == 2.0
    )
    assert torch.equal(again.model(tokens).logits, made[0].model(tokens).logits)
    assert all(block["final"] <= block["initial"] for block in made[0].log.values())
