"""Weights that float32 arithmetic loses are refused by every method, however it is called."""

from __future__ import annotations

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.contracts import LinearStats
from qbench.errors import ConfigError, MethodError
from qbench.methods.native import loops
from qbench.weight_range import LARGEST, SMALLEST, require_computable

WEIGHT = torch.linspace(-1, 1, 512).view(8, 64)
STATS = LinearStats(torch.eye(64), 64)


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


@pytest.mark.parametrize(
    "weight, wrong",
    [
        (WEIGHT[0], r"\(64,\) torch.float32"),
        (WEIGHT.view(2, 4, 64), r"\(2, 4, 64\) torch.float32"),
        (WEIGHT[:0], r"\(0, 64\) torch.float32"),
        (WEIGHT[:, :0], r"\(8, 0\) torch.float32"),
        (WEIGHT.to(torch.complex64), "torch.complex64"),
        (WEIGHT.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (WEIGHT.to(torch.int32), "torch.int32"),
        (WEIGHT.to_sparse(), "torch.float32 torch.sparse_coo"),
        (WEIGHT.to("meta"), "torch.float32 on the meta device"),
        (WEIGHT.tolist(), "a list; give a tensor"),
        (WEIGHT.numpy(), "a ndarray; give a tensor"),
        (None, "a NoneType; give a tensor"),
    ],
)
def test_what_is_no_weight_is_refused(weight, wrong):
    method = qbench.get_method("rtn")
    for call in (
        lambda: method.quantize_weight(weight, Scheme(4, 32)),
        lambda: qbench.get_method("gptq").quantize_linear(weight, STATS, Scheme(4, 32)),
        lambda: method.quantize_weight(scheme=Scheme(4, 32), weight=weight),
    ):
        with pytest.raises(ConfigError, match=f"the weight(, .*| is ){wrong}"):
            call()


@pytest.mark.parametrize("method", ["rtn", "greedy", "alternating"])
def test_a_parameter_and_a_negative_view_are_their_values(method):
    quantize = qbench.get_method(method).quantize_weight
    expected = quantize(-WEIGHT, Scheme(4, 32)).to_tensors()
    for weight in (torch.nn.Parameter(-WEIGHT), torch._neg_view(WEIGHT)):
        found = quantize(weight, Scheme(4, 32)).to_tensors()
        for part, tensor in found.items():
            assert not tensor.requires_grad and torch.equal(tensor, expected[part])


def test_loops_in_c_do_not_read_a_negative_view():
    assert loops.here(WEIGHT) == (loops.unavailable() is None)
    assert not loops.here(WEIGHT, torch._neg_view(WEIGHT))


def test_zeros_and_weights_without_data_are_fine_and_nan_is_counted():
    require_computable(torch.zeros(2, 2))
    require_computable(torch.empty(2, 2, device="meta"))
    with pytest.raises(MethodError, match=r"1 of the 4 weights of layer q are NaN or infinite"):
        require_computable(torch.tensor([[1.0, float("nan")], [0.0, 0.0]]), "layer q")
