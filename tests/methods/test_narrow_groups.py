"""Groups of one value, or nearly, and groups of zeros, beside ordinary ones."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from qbench import Scheme
from qbench.checks.samples import quantize_sample
from qbench.registry import get_method, methods
from samples import normal

GROUP = 16
WITH_ZERO_POINTS = [
    name for name, method in methods().items() if "zero_point" in {f.name for f in fields(method)}
]


@pytest.mark.parametrize("scale_bits", [16, 8, 6])
@pytest.mark.parametrize("zero_point", ["integer", "real"])
@pytest.mark.parametrize("name", WITH_ZERO_POINTS)
def test_groups_of_nearly_one_value_keep_it(name, zero_point, scale_bits):
    weight = 0.05 * normal(8, 64)
    weight[2, 16:32] = 0.371 + 1e-6 * normal(16)
    weight[5] = 0.25
    method = replace(get_method(name), zero_point=zero_point, scale_bits=scale_bits)
    plain = get_method(name)
    scheme = Scheme(4, GROUP)
    error = quantize_sample(method, scheme, weight).dequantize() - weight
    ordinary = quantize_sample(plain, scheme, weight).dequantize() - weight
    others = torch.ones_like(weight, dtype=torch.bool)
    others[2, 16:32] = False
    others[5] = False
    assert error[2, 16:32].abs().max() < 0.01  # feedback gives it the errors of other columns
    assert error[5].abs().max() < 0.001
    assert error[others].norm() < 1.2 * ordinary[others].norm()


def test_a_row_of_zeros_does_not_change_how_scales_are_stored():
    weight = 0.02 * normal(64, 128)
    weight[3] = 0
    quantized = get_method("rtn").quantize_weight(weight, Scheme(8, 64))
    assert quantized.scale.dtype == torch.float16
    assert not quantized.dequantize()[3].any()
