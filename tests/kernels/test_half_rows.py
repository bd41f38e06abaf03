"""Products with weights made in registers, without a GPU: the CUDA sources, run on the CPU."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import functions_on_cpu, needs_compiler
from qbench.kernels.gpu.cuda import dequantize, half_rows
from qbench.kernels.gpu.cuda import launch as launching
from qbench.kernels.gpu.cuda.half_rows import Config
from qbench.kernels.gpu.cuda.layout import derive
from samples import binary_weight, normal, uniform_weight

pytestmark = needs_compiler

SMALL = Config(rows=8, tiles=1, across=2, along=1, split=1, stages=3, blocks=1)
SPANS = Config(rows=8, tiles=2, across=2, along=2, split=2, stages=3, blocks=1, span=1)


@pytest.fixture(autouse=True)
def on_cpu(tmp_path_factory):
    """Functions run on the CPU."""
    with functions_on_cpu(
        tmp_path_factory, (launching,), (half_rows._compiled, dequantize._compiled)
    ):
        yield


def sample(kind, bits, group, parameters=torch.float16, inputs=1152, out=40):
    """A weight; groups of 256 take 1280 inputs."""
    inputs = 1280 if group == 256 else inputs
    if kind in ("binary", "unshifted"):
        return binary_weight(out, inputs, bits, group, kind == "binary", dtype=parameters)
    return uniform_weight(out, inputs, bits, group, zero=kind, dtype=parameters)


def multiply(weight, x, bias=None, config=SMALL):
    y = torch.full((len(x), weight.shape[0]), torch.nan, dtype=x.dtype)
    half_rows.launch(x, derive(weight), bias, y, config)
    return y


def rounding_errors(weight, dtype):
    """Differences between what is made and the weight, in spacings of the dtype.

    The spacing is that of the largest sum on the way: of all alpha, or of code and zero point.
    """
    made = dequantize.weight(derive(weight), dtype).double()
    exact = weight.dequantize().double()
    spacing = torch.finfo(dtype).eps * largest_sums(weight)
    return (made - exact).abs() / spacing, made, exact


def largest_sums(weight):
    """(out, in) float64."""
    if weight.format == "uniform":
        _, scale, _ = weight.unpacked()
        most = scale.double() * 2**weight.bits
    else:
        most = weight.alpha.double().abs().sum(2)
        if weight.shift is not None:
            most = most + weight.shift.double().abs()
    return most.repeat_interleave(weight.group_size, 1)


def case(kind, bits, group, parameters, dtype, quick=False):
    name = f"{kind}-{bits}-{group}-{str(dtype)[6:]}"
    marks = () if quick else pytest.mark.slow
    return pytest.param(kind, bits, group, parameters, dtype, marks=marks, id=name)


HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32
FORMATS = [
    case("binary", 1, 128, HALF, HALF),
    case("binary", 2, 128, HALF, BRAIN),
    case("binary", 3, 128, HALF, HALF),
    case("binary", 3, 128, HALF, BRAIN, quick=True),
    case("unshifted", 3, 1152, FLOAT, BRAIN),
    case("binary", 3, 64, HALF, BRAIN),
    case("binary", 3, 32, HALF, HALF),
    case("integer", 3, 128, HALF, BRAIN),
    case("real", 2, 384, HALF, HALF),
    case("binary", 4, 128, HALF, BRAIN),
    case("integer", 4, 128, HALF, HALF),
    case("integer", 4, 128, HALF, BRAIN, quick=True),
    case("middle", 4, 32, HALF, BRAIN),
    case("real", 4, 64, FLOAT, BRAIN),
    case("real", 4, 64, FLOAT, HALF),
    case("unshifted", 5, 256, HALF, HALF, quick=True),
    case("integer", 5, 128, HALF, BRAIN),
    case("binary", 6, 384, HALF, HALF),
    case("integer", 7, 1152, HALF, BRAIN),
    case("binary", 8, 128, HALF, BRAIN),
    case("integer", 8, 128, HALF, HALF),
    case("integer", 8, 128, HALF, BRAIN),
    case("integer", 8, 64, HALF, BRAIN),
]
# How x is brought in spans depends on the sizes of what is brought beside it: every kind, width,
# group, and dtype of parameters and of x is among these.
IN_SPANS = (
    "binary-1-128-float16",
    "binary-3-128-bfloat16",
    "unshifted-3-1152-bfloat16",
    "real-2-384-float16",
    "middle-4-32-bfloat16",
    "binary-3-64-bfloat16",
    "unshifted-5-256-float16",
    "binary-6-384-float16",
    "integer-7-1152-bfloat16",
    "integer-8-128-float16",
    "binary-8-128-bfloat16",
)


def products():
    """Every format with x brought together, and some with x in spans."""
    for name, config in (("together", SMALL), ("spans", SPANS)):
        for one in FORMATS:
            if config is SMALL or one.id in IN_SPANS:
                yield pytest.param(*one.values, config, marks=one.marks, id=f"{one.id}-{name}")


@pytest.mark.parametrize("kind, bits, group, parameters, dtype", FORMATS)
def test_weights_are_those_of_the_format_rounded(kind, bits, group, parameters, dtype):
    weight = sample(kind, bits, group, parameters)
    errors, made, exact = rounding_errors(weight, dtype)
    if bits < 4 and group >= 128:  # one table, and one rounding
        # Levels are added in float32: hardly ever does that change how one is rounded.
        assert (made == exact.to(dtype)).float().mean() > 0.998
    assert errors.max() <= 1.1


@pytest.mark.parametrize("kind, bits, group, parameters, dtype, config", products())
def test_products_are_those_of_the_weights_made(kind, bits, group, parameters, dtype, config):
    weight = sample(kind, bits, group, parameters)
    x = normal(7, weight.shape[1], seed=1).to(dtype)
    bias = normal(40, seed=2)
    made = dequantize.weight(derive(weight), dtype)
    reference = x.double() @ made.double().T + bias
    y = multiply(weight, x, bias, config)
    error = (y.double() - reference).norm() / reference.norm()
    assert error <= 0.3 * torch.finfo(dtype).eps  # that of rounding y


@pytest.mark.parametrize(
    "config",
    [
        Config(8, 1, 1, 4, 1, 3, 1),
        Config(16, 2, 2, 1, 1, 5, 1),
        pytest.param(Config(24, 2, 1, 2, 1, 4, 1), marks=pytest.mark.slow),
        pytest.param(Config(64, 2, 2, 1, 1, 3, 1), marks=pytest.mark.slow),
        Config(8, 2, 4, 4, 2, 3, 1, 1),
        Config(8, 1, 4, 2, 1, 4, 2, 2),
        pytest.param(Config(16, 2, 4, 3, 2, 3, 1, 1), marks=pytest.mark.slow),
        pytest.param(Config(8, 1, 4, 4, 1, 4, 1, 2), marks=pytest.mark.slow),
        pytest.param(Config(8, 1, 8, 2, 2, 4, 1, 2), marks=pytest.mark.slow),
        pytest.param(Config(16, 1, 16, 1, 4, 3, 1, 4), marks=pytest.mark.slow),
        pytest.param(Config(8, 1, 2, 1, 2, 3, 1, 0), marks=pytest.mark.slow),
    ],
    ids=lambda config: "-".join(map(str, vars(config).values())),
)
def test_every_configuration_computes_the_same(config):
    weight = binary_weight(72, 1280, 3, 128)
    x = normal(19, 1280).half()
    expected = multiply(weight, x)
    torch.testing.assert_close(multiply(weight, x, config=config), expected, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize(
    "inputs, config",
    [
        (1000, Config(16, 1, 2, 1, 1, 3, 1)),
        (1001, Config(16, 1, 2, 1, 1, 3, 1)),
        pytest.param(1001, Config(16, 2, 2, 2, 2, 4, 1, 2), marks=pytest.mark.slow),
    ],
)
def test_inputs_that_fill_no_chunk_are_zeros(inputs, config):
    weight = binary_weight(24, inputs, 3, inputs)
    x = normal(9, inputs).half()
    reference = x.double() @ weight.dequantize().double().T
    y = multiply(weight, x, config=config)
    torch.testing.assert_close(y.double(), reference, rtol=2e-3, atol=2e-2)
    made = dequantize.weight(derive(weight), torch.float16)
    torch.testing.assert_close(made, weight.dequantize().half(), rtol=1e-3, atol=0)


def test_shared_memory_of_a_block_is_what_the_source_takes():
    planes = derive(binary_weight(32, 512, 3, 128))
    # words 3 * 512, parameters 2 groups * 8 rows * 4 numbers * 4 bytes; rows of x: 272 numbers
    stage = 8 * 544 + 8 * (3 * 512 + 256)
    tables = 2 * 8 * 2 * 16 * 16
    assert half_rows.shared_bytes(planes, Config(8, 1, 8, 1, 1, 4, 2)) == 4 * stage + tables
    # in spans: of x two buffers of two batches, and tables of one batch
    stage -= 8 * 544
    spans = half_rows.shared_bytes(planes, Config(8, 1, 8, 1, 1, 4, 2, 2))
    assert spans == 2 * 2 * 8 * 544 + 4 * stage + tables // 2


@pytest.mark.parametrize("rows", [1, 8, 20, 64, 300])
@pytest.mark.parametrize(
    "kind, bits, group", [("binary", 3, 128), ("integer", 4, 32), ("binary", 8, 64)]
)
def test_what_is_offered_fits_hopper_and_the_source(kind, bits, group, rows):
    planes = derive(sample(kind, bits, group, torch.float32, inputs=1024))
    offered = list(half_rows.configurations(rows, planes))
    assert half_rows.default(rows, planes, 132) in offered
    for config in offered:
        copiers = config.across if config.span else config.threads // 32
        assert half_rows.shared_bytes(planes, config) + 1024 <= 227 << 10
        assert config.rows % copiers == 0 or copiers % config.rows == 0, "lines are of one row"
        assert config.stages >= 3, "parameters arrive a batch before their words are used"
        assert not config.span or config.span >= config.stages - 2, "a span arrives in time"
        assert config.split <= 4 and config.threads <= 512 and config.along < 16
