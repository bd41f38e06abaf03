"""Bit-serial products without a GPU: the CUDA sources, run on the CPU, against float64."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from cuda_on_cpu import functions_on_cpu, needs_compiler
from qbench.kernels.gpu.cuda import bit_serial, ring
from qbench.kernels.gpu.cuda.bit_serial import Config
from qbench.kernels.gpu.cuda.layout import derive
from qbench.kernels.registry import get_kernel
from samples import binary_weight, normal, uniform_weight

pytestmark = needs_compiler

CONFIG = Config(2, 1, 3)


@pytest.fixture(autouse=True)
def on_cpu(tmp_path_factory):
    """Products run on the CPU."""
    with functions_on_cpu(tmp_path_factory, (bit_serial,), (bit_serial._bit_planes,)):
        yield


def integers(prepared):
    """q (rows, padded in) int64 and 2^48 scale (rows, blocks) of a prepared x."""
    words = prepared.planes.long()  # (rows, chunks, lanes, 2, words)
    bits = (words[..., None] >> torch.arange(32)) & 1
    rows, chunks, _, _, count, _ = bits.shape
    # lane 4 g + t, bit 8 j + s -> plane 8 word + g, input 16 s + 4 t + j
    split = bits.view(rows, chunks, 8, 4, 2, count, 4, 8)
    planes = split.permute(0, 5, 2, 1, 4, 7, 3, 6).reshape(rows, 8 * count, chunks * 256)
    place = 2 ** torch.arange(8 * count)
    place[-1] *= -1
    return (planes * place[:, None]).sum(1), prepared.blocks[..., 0].flatten(1)


def multiply(weight, x, bias=None, config=CONFIG, x_planes=16):
    """The product and the prepared x."""
    planes = derive(weight)
    prepared = bit_serial.prepare(x, planes, x_planes)
    y = torch.full((len(x), weight.shape[0]), torch.nan, dtype=x.dtype)
    bit_serial.launch(prepared, planes, bias, y, config)
    return y, prepared


def relative_error(y, reference):
    return ((y.double() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("x_planes", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_planes_of_x_are_its_rounded_integers(dtype, x_planes):
    x = normal(3, 1000, dtype=torch.float32).to(dtype)
    x[1, :128] = 0
    x[2, 500] = 100
    planes = derive(binary_weight(16, 1000, 1, 1000))
    prepared = bit_serial.prepare(x, planes, x_planes)
    q, lifted = integers(prepared)
    largest = {8: 127, 16: 32512}[x_planes]
    blocks = torch.nn.functional.pad(x.float(), (0, 24)).view(3, 8, 128)
    maximum = blocks.abs().amax(2, keepdim=True).clamp(min=1e-30)
    expected = (blocks * (largest / maximum)).round().long().view(3, 1024)
    assert torch.equal(q, expected)
    scale = maximum.view(3, 8) / largest
    assert torch.equal(lifted, scale * 2.0**48)
    for start, size in ((1, 128), (2, 64), (4, 32)):
        sums = q.view(3, 8, 128 // size, size).sum(3) * scale[..., None]
        found = prepared.blocks.view(3, 8, 8)[..., start : start + 128 // size]
        assert torch.equal(found, sums)


def test_sums_are_exact_integers():
    """With numbers whose products fit float32 nothing is rounded before the output is."""
    weight = uniform_weight(32, 512, 4, 128)
    weight.scale[:] = 2.0**-16
    x = torch.randint(-126, 127, (1, 512)).half()
    x[0, ::128] = 127  # the scale is 2^-8
    y, prepared = multiply(weight, x)
    q, _ = integers(prepared)
    assert torch.equal(q, 256 * x.long())
    exact = x.double() @ weight.dequantize().double().T
    assert torch.equal(y, exact.half())


VARIANTS = [  # kind, planes, group size (0: per channel), dtype of x, of the parameters, rows of x
    ("binary", 3, 128, torch.bfloat16, torch.float16, 2),
    ("uniform", 4, 128, torch.float16, torch.float16, 1),
    ("binary", 4, 32, torch.float16, torch.float16, 1),
    ("uniform", 3, 64, torch.bfloat16, torch.float16, 4),
]
MORE_VARIANTS = [
    ("binary", 2, 64, torch.float16, torch.float32, 2),
    ("binary", 1, 256, torch.float16, torch.float16, 4),
    ("unshifted", 8, 384, torch.float16, torch.float16, 1),
    ("unshifted", 3, 0, torch.bfloat16, torch.float32, 3),
    ("uniform", 2, 32, torch.float16, torch.float32, 1),
    ("uniform", 8, 0, torch.float16, torch.float16, 2),
    ("uniform", 5, 384, torch.float16, torch.float32, 1),
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


@pytest.mark.parametrize(
    "config", [Config(1, 1, 2), Config(4, 2, 2), Config(2, 4, 5), Config(1, 2, 6)]
)
def test_every_configuration_computes_the_same(config):
    weight = binary_weight(72, 1280, 3, 128)
    x = normal(2, 1280).half()
    y, _ = multiply(weight, x, config=config)
    expected, _ = multiply(weight, x)
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)  # sums in another order


def test_eight_planes_of_x_are_a_coarser_x():
    weight = binary_weight(32, 512, 3, 128)
    x = normal(1, 512).half()
    y, prepared = multiply(weight, x, x_planes=8)
    q, lifted = integers(prepared)
    coarse = q.double() * (lifted / 2.0**48).double().repeat_interleave(128, 1)
    reference = coarse @ weight.dequantize().double().T
    assert relative_error(y, reference) < 3e-4
    assert 1e-3 < relative_error(y, x.double() @ weight.dequantize().double().T) < 1e-2


@pytest.mark.parametrize("columns", [32, 128, 1152])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_error_of_the_fast_mode_is_declared(columns, dtype):
    fast = get_kernel("cuda-fast")
    for seed, kind in product(range(3), (binary_weight, uniform_weight)):
        weight = kind(40, columns, 3, 32, seed=seed)
        x = normal(4, columns, seed=seed + 7).to(dtype)
        y, _ = multiply(weight, x, x_planes=8)
        reference = x.double() @ weight.dequantize().double().T
        assert relative_error(y, reference) < fast.bound(dtype)


@pytest.mark.parametrize("number", [torch.inf, torch.nan])
def test_what_is_not_finite_stays_so(number):
    weight = binary_weight(16, 256, 2, 128)
    x = normal(2, 256).half()
    x[1, 3] = number
    y, _ = multiply(weight, x)
    assert torch.isfinite(y[0]).all() and not torch.isfinite(y[1]).any()


@pytest.mark.parametrize("bits, group", [(1, 4096), (3, 128), (8, 32)])
def test_configurations_fit_a_multiprocessor(bits, group):
    planes = derive(binary_weight(32, 4096, bits, group, dtype=torch.float32))
    for rows in (1, 4):
        configs = [*bit_serial.configurations(rows, planes)]
        configs += [bit_serial.default(rows, planes, count) for count in (1, 132)]
        for config in configs:
            assert bit_serial.shared_bytes(planes, config) <= ring.SHARED_BYTES
            assert config.stages >= 2 and 32 * config.warps <= 1024


def test_what_is_served():
    planes = derive(binary_weight(16, 128, 2, 128))
    assert bit_serial.serves(planes, 4, 90) is bit_serial.serves(planes, 1, 80) is None
    assert "5 rows of x; up to 4" in bit_serial.serves(planes, 5, 90)
    assert "sm_100 has no products of bits" in bit_serial.serves(planes, 1, 100)
