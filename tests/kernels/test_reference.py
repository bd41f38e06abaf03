"""The reference products mean what `dequantize` says, in every format and shape."""

from __future__ import annotations

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.errors import ConfigError
from qbench.formats import Binary
from qbench.kernels.reference import linear


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("method", ["rtn", "greedy", "alternating", "none"])
@pytest.mark.parametrize("shape, group", [((5, 48), 16), ((1, 40), None), ((33, 64), 64)])
def test_reference_equals_the_dense_product(method, bits, shape, group):
    generator = torch.Generator().manual_seed(0)
    weight = qbench.get_method(method).quantize_weight(
        torch.randn(shape, generator=generator), Scheme(bits, group)
    )
    x = torch.randn(2, 3, shape[1], generator=generator, dtype=torch.float64)
    bias = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    expected = x @ weight.dequantize().double().T + bias
    torch.testing.assert_close(linear(x, weight, bias), expected, rtol=1e-5, atol=1e-5)


def test_uniform_and_its_binary_form_give_the_same_product():
    generator = torch.Generator().manual_seed(0)
    weight = qbench.get_method("rtn").quantize_weight(
        torch.randn(16, 64, generator=generator), Scheme(3, 32)
    )
    x = torch.randn(4, 64, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        linear(x, Binary.from_uniform(weight)), linear(x, weight), rtol=1e-12, atol=1e-12
    )


def test_shapes_that_do_not_fit():
    weight = qbench.get_method("rtn").quantize_weight(torch.ones(4, 32), Scheme(4, 32))
    with pytest.raises(
        ConfigError, match=r"x \(2, 31\), weight \(4, 32\), bias None do not fit; x must end in 32"
    ):
        linear(torch.ones(2, 31), weight)
    with pytest.raises(ConfigError, match=r"x \(\), weight \(4, 32\), bias None do not fit"):
        linear(torch.tensor(1.0), weight)
