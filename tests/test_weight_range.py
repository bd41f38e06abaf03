"""Weights that float32 arithmetic loses are refused by every method, however it is called."""

from __future__ import annotations

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.contracts import LinearStats
from qbench.errors import MethodError
from qbench.weight_range import LARGEST, SMALLEST, require_computable

WEIGHT = torch.linspace(-1, 1, 512).view(8, 64)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-9, 1e17, 1e30])
@pytest.mark.parametrize("method", ["rtn", "alternating"])
def test_weights_out_of_range_are_refused_by_their_largest(method, scale):
    with pytest.raises(MethodError, match=r"the largest weight of the weight is .*scale the layer"):
        qbench.get_method(method).quantize_weight(WEIGHT * scale, Scheme(4, 32))


@pytest.mark.parametrize("scale", [1.01 * SMALLEST, 1.0, 0.99 * LARGEST])
@pytest.mark.parametrize("method", ["rtn", "alternating"])
def test_weights_within_range_are_right(method, scale):
    weight = WEIGHT * scale
    dense = qbench.get_method(method).quantize_weight(weight, Scheme(4, 32)).dequantize()
    assert ((dense - weight).abs().max() / scale) < 1 / 15


@pytest.mark.parametrize("method", ["rtn-h", "gptq", "alternating-h"])
def test_statistics_that_are_not_finite_are_refused(method):
    hessian = torch.eye(64)
    hessian[3, 5] = float("nan")
    verb = qbench.get_method(method).quantize_linear
    with pytest.raises(MethodError, match="1 of the 4096 numbers of the inputs' Hessian are NaN"):
        verb(WEIGHT, LinearStats(hessian, 64), Scheme(4, 32))


def test_zeros_and_weights_without_data_are_fine_and_nan_is_counted():
    require_computable(torch.zeros(2, 2))
    require_computable(torch.empty(2, 2, device="meta"))
    with pytest.raises(MethodError, match=r"1 of the 4 weights of layer q are NaN or infinite"):
        require_computable(torch.tensor([[1.0, float("nan")], [0.0, 0.0]]), "layer q")
