"""The loops in C compute what the functions in torch do, and nothing beyond their rows."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from qbench import registry, shared_library
from qbench.contracts import LinearStats
from qbench.method_source import module_file
from qbench.methods import alternating, curvature, error_feedback, grids, levels
from qbench.methods.native import loops
from qbench.methods.sorted_groups import SortedGroups
from qbench.scheme import Scheme
from samples import integers, normal

pytestmark = pytest.mark.skipif(
    loops.unavailable() is not None, reason="the loops of methods are not built"
)
OUTS = (1, 15, 16, 17, 40)  # rows: fewer and more than a vector has


@pytest.fixture
def in_torch(monkeypatch):
    """Switches the loops off, as where the library is missing."""
    return lambda: monkeypatch.setattr(loops, "here", lambda *tensors, **dtype: False)


def factor(columns: int) -> torch.Tensor:
    """Upper U of a Hessian whose inputs depend on each other."""
    return error_feedback.inverse_cholesky(correlated(columns).hessian, 0.01)


def correlated(columns: int) -> LinearStats:
    x = normal(4 * columns, columns, seed=1)
    x[:, 1:] += 0.7 * x[:, :-1]
    return LinearStats(2 / len(x) * x.T @ x, len(x))


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("columns", [1, 33, 128])
def test_error_feedback_onto_a_grid(columns, out):
    W = normal(columns, out)
    s = normal(columns, out, seed=1).abs() + 0.1
    s[:, 0] = 0  # a row of zeros: its scale is none
    inverse = torch.where(s > 0, 1 / s, 0)
    z = integers((columns, out), 0, 8).float()
    U = factor(columns)
    plain = [W.clone(), torch.empty_like(W), torch.empty_like(W)]
    fast = [W.clone(), torch.empty_like(W), torch.empty_like(W)]
    error_feedback.round_block(U, s, inverse, z, *plain, 7)
    loops.round_block(U, s, inverse, z, *fast, 7)
    assert torch.equal(fast[1], plain[1])
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("levels", [2, 8, 64])
def test_error_feedback_onto_levels(levels, out):
    W = normal(48, out)
    tables = normal(3, levels, out).sort(1).values
    group_of = integers((48,), 0, 3).long()
    U = factor(48)
    plain = [W.clone(), torch.empty_like(W)]
    fast = [W.clone(), torch.empty_like(W)]
    curvature.feed_back_block(U, tables, group_of, *plain)
    loops.feed_back_block(U, tables, group_of, *fast)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group", [1, 8, 16, 64, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_grids(group, weighted, in_torch):
    W = normal(37, group)
    s = normal(37).abs() + 0.05
    z = normal(37, seed=1).abs() * 5
    counts = normal(37, group, seed=2).abs() if weighted else None
    fast = grids.grid_error(W, s, z, 4, 2.0, counts), grids.fitted_scale(W, s, z, 4, counts)
    in_torch()
    plain = grids.grid_error(W, s, z, 4, 2.0, counts), grids.fitted_scale(W, s, z, 4, counts)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)


def test_what_the_loops_do_not_take_is_computed_in_torch():
    """Weights with other strides, and importances of another dtype, which C would misread."""
    W = normal(24, 8)
    U = factor(8)
    grid = torch.full((8, 24), 0.5), torch.full((8, 24), 3.0)
    strided = W.clone().T
    assert not strided.is_contiguous()
    codes, errors = error_feedback.round_span(strided, U, *grid, 7, 4)
    contiguous = W.T.contiguous()
    expected = error_feedback.round_span(contiguous, U, *grid, 7, 4)
    assert torch.equal(codes, expected[0])
    torch.testing.assert_close((errors, strided), (expected[1], contiguous), rtol=1e-4, atol=1e-5)
    counts = normal(24, 8, seed=1).abs()
    s, z = torch.full((24,), 0.5), torch.full((24,), 3.0)
    plain = grids.grid_error(W, s, z, 3, 2.0, counts.double())
    torch.testing.assert_close(
        plain, grids.grid_error(W, s, z, 3, 2.0, counts), rtol=1e-5, atol=1e-6
    )


def test_no_loop_reads_beyond_what_it_is_given():
    W, s = normal(8, 16), torch.ones(8)
    with pytest.raises(RuntimeError):
        loops.grid_error(W, s[:7], s, 3, None)
    with pytest.raises(RuntimeError):
        loops.grid_error(W, s, s, 3, normal(7, 16))
    with pytest.raises(RuntimeError):
        loops.ranked(W, normal(8, 2), torch.zeros(8, 4, dtype=torch.int64))


def test_a_code_is_rounded_as_torch_rounds_it():
    """Halves go to even, and what lies beyond the grid to its ends."""
    W = torch.tensor([[-9.0, -0.5, 0.5, 1.5, 2.5, 6.5, 7.5, 1e9]])
    one = torch.ones(1)
    q = grids.nearest_codes(W, one, 0 * one, 3)
    expected = (W - q).square().sum(1)
    assert torch.equal(loops.grid_error(W, one, 0 * one, 3, None), expected)


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_cells(levels, in_torch):
    W = normal(29, 50).mul(4).round()  # with many that are equal
    at = normal(29, levels).double().mul(4).round().sort(1).values
    plain_groups = SortedGroups.of(W)
    weighted = SortedGroups.of(W, normal(29, 50, seed=1).abs())
    fast = (*plain_groups.cells(at), *weighted.cells(at))
    in_torch()
    plain = (*plain_groups.cells(at), *weighted.cells(at))
    for ours, theirs in zip(fast, plain, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("count", [2, 8, 64])
@pytest.mark.parametrize("group", [1, 16, 50])
def test_ranks(count, group, in_torch):
    W = normal(31, group).mul(4).round()  # some lie on a midpoint
    at = normal(31, count, seed=1).mul(4).round()
    fast = levels.nearest(W, at)
    in_torch()
    assert torch.equal(fast, levels.nearest(W, at))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_least_squares(bits, shifted, in_torch):
    """Levels that no weight is nearest to leave unknowns that nothing determines: they are zero."""
    signs = levels.level_signs(bits, torch.device("cpu"))
    count = integers((27, 2**bits), 0, 9).double()
    count[:3] = 0
    count[3:6, 1:] = 0
    total = count * normal(27, 2**bits, dtype=torch.float64)
    fast = alternating.least_squares(count, total, signs, shifted)
    in_torch()
    plain = alternating.least_squares(count, total, signs, shifted)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["rtn", "gptq", "alternating", "alternating-h", "rtn-h"])
def test_methods_are_as_good_in_torch(name, in_torch):
    """Sums are rounded in another order, which may decide a tie otherwise, and nothing else."""
    method = registry.method_class(name)()
    W = normal(48, 128)
    stats = correlated(128)

    def loss() -> torch.Tensor:
        if hasattr(method, "quantize_weight"):
            quantized = method.quantize_weight(W, Scheme(3, 32))
        else:
            quantized = method.quantize_linear(W, stats, Scheme(3, 32))
        change = quantized.dequantize() - W
        return ((change @ stats.hessian) * change).sum()

    fast = loss()
    in_torch()
    torch.testing.assert_close(fast, loss(), rtol=5e-3, atol=0)


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(loops, "_path", lambda: None)
    loops.unavailable.cache_clear()
    try:
        assert "was not built" in str(loops.unavailable())
        assert not loops.here(torch.ones(1))
        assert registry.method_class("rtn")().quantize_weight(normal(8, 64), Scheme(3, 32))
    finally:
        loops.unavailable.cache_clear()


def test_the_source_in_c_is_part_of_a_method(monkeypatch, tmp_path):
    gptq = registry.method_class("gptq")
    before = registry.source_hash(gptq)
    source = tmp_path / "loops.py"
    source.write_bytes(Path(loops.__file__).read_bytes())
    (tmp_path / "loops.c").write_text("/* another */\n")
    monkeypatch.setattr(
        registry,
        "module_file",
        lambda name: source if name == loops.__name__ else module_file(name),
    )
    assert registry.source_hash(gptq) != before


def test_midpoints_decide_which_level_is_nearest():
    at = torch.tensor([[0.0, 1.0, 4.0]]).double()
    assert levels.midpoints(at).tolist() == [[0.5, 2.5]]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set")
def test_instruction_sets_give_the_same_bits(tmp_path, monkeypatch):
    def computed() -> list[torch.Tensor]:
        W = normal(40, 100)
        s = normal(40, seed=1).abs() + 0.1
        z = normal(40, seed=2).abs() * 5
        counts = normal(40, 100, seed=3).abs()
        U = factor(100)
        changed = [W.T.contiguous(), torch.empty(100, 40), torch.empty(100, 40)]
        steps = s.expand(100, 40)
        loops.round_block(U, steps, 1 / steps, z.expand(100, 40), *changed, 7)
        tables = normal(4, 8, 40).sort(1).values
        fed = [W.T.contiguous(), torch.empty(100, 40)]
        loops.feed_back_block(U, tables, torch.arange(100) // 25, *fed)
        error = loops.grid_error(W, s, z, 3, counts)
        columns = levels.level_signs(3, torch.device("cpu"))
        count = integers((40, 8), 1, 9).double()
        theta = loops.least_squares(count, count * normal(40, 8).double(), columns)
        return [*changed, *fed, error, *loops.fit_sums(W, s, z, 3, None), theta]

    expected = computed()
    for flag in ("-msse2", "-mavx2", "-mavx512f"):
        if flag[2:] not in Path("/proc/cpuinfo").read_text():
            continue
        path = tmp_path / f"loops{flag}.so"
        words = ["cc", "-std=c11", "-O3", "-ffp-contract=off", "-DLOOPS_ONE_PROCESSOR", flag]
        source = Path(loops.__file__).with_suffix(".c")
        subprocess.run([*words, "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
        library = shared_library.typed(path, "loops_", loops._FUNCTIONS)
        monkeypatch.setattr(loops, "_library", lambda library=library: library)
        assert all(map(torch.equal, computed(), expected)), flag
