"""The error of a layer against its definition, and where it is kept."""

from __future__ import annotations

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.calibration.layer_error import relative_error


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 8, generator=generator)
    noise = 0.1 * torch.randn(5, 8, generator=generator)
    x = torch.randn(40, 8, generator=generator)
    return weight, weight + noise, x


def test_it_is_that_of_the_outputs_under_second_moments(drawn):
    weight, quantized, x = drawn
    exact = ((x @ (weight - quantized).T).double() ** 2).sum() / (
        (x @ weight.T).double() ** 2
    ).sum()
    for scale in (1.0, 7.0):
        error = relative_error(weight, quantized, scale * x.T @ x)
        assert error == pytest.approx(exact.item(), rel=1e-4)


def test_it_is_that_of_the_weights_without(drawn):
    weight, quantized, _ = drawn
    exact = ((weight - quantized) ** 2).sum() / (weight**2).sum()
    assert relative_error(weight, quantized) == pytest.approx(exact.item(), rel=1e-5)
    assert relative_error(weight, weight) == 0.0


def test_it_is_none_where_there_is_nothing_to_compare_with(drawn):
    weight, quantized, _ = drawn
    assert relative_error(torch.zeros(5, 8), quantized) is None
    assert relative_error(weight, quantized, torch.zeros(8, 8)) is None


@pytest.mark.parametrize(
    "method, key",
    [("rtn", "weight_errors"), ("gptq", "output_errors"), ("flexround", "weight_errors")],
)
def test_every_layer_of_every_block_has_one_in_the_log(tiny, tmp_path, method, key):
    model = tiny(hidden_size=64)
    tokens = torch.randint(0, 90, (4, 32), generator=torch.Generator().manual_seed(0))
    quantized = qbench.quantize(model, method, Scheme(3, 32), tokens)
    assert quantized.log.keys() == {"model.layers.0", "model.layers.1"}
    told = {
        f"{block}.{layer}": error
        for block, entry in quantized.log.items()
        for layer, error in entry[key].items()
    }
    assert told.keys() == quantized.weights.keys()
    assert all(0 < error < 1 for error in told.values())
    folder = quantized.save(tmp_path / "saved")
    assert qbench.load(folder).log == quantized.log
