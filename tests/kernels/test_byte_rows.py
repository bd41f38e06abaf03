"""Products by bytes without a GPU: the CUDA sources, run on the CPU, against float64."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import functions_on_cpu, needs_compiler
from qbench.kernels.gpu.cuda import byte_rows
from qbench.kernels.gpu.cuda.byte_rows import Config
from qbench.kernels.gpu.cuda.layout import derive
from samples import binary_weight, normal, uniform_weight

pytestmark = needs_compiler

CONFIG = Config(2, 1, 3)


@pytest.fixture(autouse=True)
def on_cpu(tmp_path_factory):
    """Products run on the CPU."""
    with functions_on_cpu(tmp_path_factory, (byte_rows,), (byte_rows._bytes,)):
        yield


def multiply(weight, x, bias=None, config=CONFIG):
    """The product and the prepared x."""
    planes = derive(weight)
    prepared = byte_rows.prepare(x, planes)
    y = torch.full((len(x), weight.shape[0]), torch.nan, dtype=x.dtype)
    byte_rows.launch(prepared, planes, bias, y, config)
    return y, prepared


def relative_error(y, reference):
    return ((y.double() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bytes_of_x_are_its_rounded_integers(dtype):
    x = normal(5, 1000).to(dtype)
    x[1, :128] = 0
    x[4, 500] = 100
    prepared = byte_rows.prepare(x, derive(binary_weight(16, 1000, 1, 1000)))
    # lane 4 g + t: row g // 2, high or low; word 2 (n % 2) + h: inputs 32 n + 16 h + 4 t ..
    octets = prepared.bytes.view(torch.int8).view(2, 4, 2, 2, 4, 2, 4, 2, 2, 4).long()
    ordered = octets.permute(0, 4, 1, 2, 3, 7, 8, 6, 9, 5).reshape(8, 1024, 2)
    q = 256 * ordered[..., 0] + ordered[..., 1]
    blocks = torch.zeros(8, 8, 128)
    blocks.view(8, 1024)[:5, :1000] = x.float()
    maximum = blocks.abs().amax(2, keepdim=True).clamp(min=1e-30)
    rounded = (blocks * (16256 / maximum)).round().long()
    steps = rounded.view(8, 8, 4, 2, 16)  # of 16 inputs; the even ones are doubled
    assert torch.equal(q.view(8, 8, 4, 2, 16), steps * torch.tensor([2, 1])[:, None])
    scale = (maximum / 16256).view(8, 4, 2)
    assert torch.equal(prepared.blocks[..., 0], scale * 2.0**41)
    for start, size in ((1, 128), (2, 64), (4, 32)):
        sums = rounded.view(8, 4, 2, 128 // size, size).sum(4) * scale[..., None]
        assert torch.equal(prepared.blocks[..., start : start + 128 // size], sums)


def test_sums_are_exact_integers():
    """With numbers whose products fit float32 nothing is rounded before the output is."""
    weight = uniform_weight(32, 512, 4, 128)
    weight.scale[:] = 2.0**-16
    x = torch.randint(-126, 127, (4, 512)).half()
    x[:, ::128] = 127  # the scale is 2^-7
    y, _ = multiply(weight, x)
    assert torch.equal(y, (x.double() @ weight.dequantize().double().T).half())


VARIANTS = [  # kind, planes, group size (0: per channel), dtype of x, of the parameters, rows of x
    ("binary", 3, 128, torch.bfloat16, torch.float16, 4),
    ("uniform", 4, 64, torch.float16, torch.float16, 7),
    ("binary", 2, 32, torch.float16, torch.float16, 16),
]
MORE_VARIANTS = [
    ("binary", 1, 256, torch.float16, torch.float32, 12),
    ("unshifted", 8, 384, torch.float16, torch.float16, 1),
    ("unshifted", 3, 0, torch.bfloat16, torch.float32, 9),
    ("uniform", 2, 32, torch.float16, torch.float32, 3),
    ("uniform", 8, 0, torch.float16, torch.float16, 8),
    ("uniform", 5, 384, torch.float16, torch.float32, 16),
]


@pytest.mark.parametrize(
    "kind, bits, group, dtype, parameters, rows",
    [
        *VARIANTS,
        *(pytest.param(*variant, marks=pytest.mark.slow) for variant in MORE_VARIANTS),
    ],
)
def test_products_are_those_of_the_dequantized_weight(kind, bits, group, dtype, parameters, rows):
    inputs = 1280 if group == 256 else 1152
    group = group or inputs
    if kind == "uniform":
        weight = uniform_weight(40, inputs, bits, group, dtype=parameters)
    else:
        weight = binary_weight(40, inputs, bits, group, kind == "binary", dtype=parameters)
    x = normal(rows, inputs, seed=1).to(dtype)
    bias = normal(40, seed=2)
    y, _ = multiply(weight, x, bias)
    reference = x.double() @ weight.dequantize().double().T + bias
    assert relative_error(y, reference) <= 1.5 * relative_error(reference.to(dtype), reference)


@pytest.mark.parametrize("config", [Config(1, 1, 2), Config(4, 2, 2)])
def test_every_configuration_computes_the_same(config):
    weight = binary_weight(72, 1280, 3, 128)
    x = normal(5, 1280).half()
    y, _ = multiply(weight, x, config=config)
    expected, _ = multiply(weight, x)
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)  # sums in another order


@pytest.mark.parametrize("number", [torch.inf, torch.nan])
def test_what_is_not_finite_stays_so(number):
    weight = binary_weight(16, 256, 2, 128)
    x = normal(2, 256).half()
    x[1, 3] = number
    y, _ = multiply(weight, x)
    assert torch.isfinite(y[0]).all() and not torch.isfinite(y[1]).any()


def test_what_is_served():
    planes = derive(binary_weight(16, 128, 8, 32, dtype=torch.float32))
    assert byte_rows.serves(planes, 16, 90) is byte_rows.serves(planes, 1, 120) is None
    assert "17 rows of x; up to 16" in byte_rows.serves(planes, 17, 90)
    for rows in (1, 16):
        assert byte_rows.default(rows, planes, 132) in byte_rows.configurations(rows, planes)
