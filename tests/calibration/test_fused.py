"""Row-wise functions: slice by slice they give what they give at once, compiled or not."""

from __future__ import annotations

import pytest
import torch

from qbench.calibration import fused
from qbench.calibration.fused import over_rows
from qbench.methods import flexround, level_mapping, mapped_weight, omniquant
from qbench.methods.levels import level_signs, sorted_midpoints

ROWS, G, BITS = 40, 16, 3


def arguments():
    """Rows for every function: weights, logarithms of scales, codes and levels."""
    torch.manual_seed(0)
    X, d2, G_ = torch.randn(3, ROWS, G)
    d1, d3, z = torch.randn(3, ROWS, 1) * 0.1
    signs = level_signs(BITS, X.device).float()
    levels = torch.rand(ROWS, BITS) @ signs.T
    codes = torch.randint(0, 2**BITS, (ROWS, G)).to(torch.uint8)
    transformed = (X, d1, d2 * 0.1, d3, z)
    n = 2**BITS - 1
    mapped = (X, d1, d2, d3, z, z, codes, levels, levels.abs().amin(1, keepdim=True), G_)
    return [
        (flexround._codes, transformed, {"n": n}),
        (flexround._rounded, transformed, {"n": n, "dtype": torch.bfloat16}),
        (flexround._gradients, (*transformed, G_), {"n": n}),
        (omniquant._rounded, (X, d1.exp(), z), {"n": n, "dtype": torch.float32}),
        (omniquant._gradients, (X, d1.exp(), z, G_), {"n": n}),
        (mapped_weight._exact, (*transformed, *sorted_midpoints(levels)), {}),
        (mapped_weight._full, (*transformed, levels), {}),
        (mapped_weight._local, (*transformed, levels, codes), {"faithful": False}),
        (level_mapping._picked, (codes, levels), {}),
        (level_mapping._gradients, mapped, {"signs": signs, "filtering": "distance"}),
        (level_mapping._gradients, mapped, {"signs": signs, "filtering": "range"}),
    ]


CASES = pytest.mark.parametrize(
    ("function", "rows", "constants"), arguments(), ids=lambda value: getattr(value, "__name__", "")
)


@CASES
def test_slices_give_what_all_rows_give(function, rows, constants, monkeypatch):
    whole = over_rows(function, *rows, **constants)
    monkeypatch.setattr(fused, "SLICE", 7 * G)  # the last slice is shorter
    for value, expected in zip(over_rows(function, *rows, **constants), whole, strict=True):
        assert value.dtype == expected.dtype and torch.equal(value, expected)


@CASES
def test_the_compiler_sees_one_graph(function, rows, constants):
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = function(*rows, **constants)
    for value, same in zip(compiled(*rows, **constants), expected, strict=True):
        assert torch.equal(value, same)


def test_both_sums_by_plane_agree():
    torch.manual_seed(0)
    values = torch.randn(ROWS, G)
    codes = torch.randint(0, 2**BITS, (ROWS, G)).to(torch.uint8)
    signs = level_signs(BITS, values.device).float()
    by_level = level_mapping.sums_by_level(values, codes, signs)
    torch.testing.assert_close(level_mapping.sums_by_plane(values, codes, BITS), by_level)
