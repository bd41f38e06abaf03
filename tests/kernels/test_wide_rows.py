"""Products of many rows for Hopper: the CUDA source on a CPU, tile sizes, machine code."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from hopper_on_cpu import SOURCES, compiled, needs_compiler
from qbench.kernels.gpu.cuda import layout, toolchain, wide_rows
from qbench.kernels.gpu.cuda.choice import Gpu, choose
from qbench.kernels.gpu.cuda.wide_rows import Config
from qbench.kernels.samples import random_binary, random_uniform
from samples import normal

# relative error against float64: twice the rounding of y, which is 1.7e-3 in bfloat16, and that of
# the weights to half precision
TOLERANCE = {torch.bfloat16: 2.5e-3, torch.float16: 1e-3}


@pytest.fixture
def on_cpu(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "hopper_on_cpu"  # of all tests, as many are alike
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(wide_rows.launcher, "function", functools.partial(compiled, folder))
    wide_rows._compiled.cache_clear()
    yield
    wide_rows._compiled.cache_clear()


def activations(rows, columns, dtype):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    x[0] *= 1e6 if dtype == torch.bfloat16 else 1e2
    x[1] *= 1e-6 if dtype == torch.bfloat16 else 1e-2
    return x.to(dtype)


def product(x, planes, bias, config):
    y = x.new_full((x.shape[0], planes.shape[0]), float("nan"))
    wide_rows.launch(x, planes, bias, y, config)
    return y


def error(y, x, weight, bias):
    """The largest relative error of a row."""
    expected = x.double() @ weight.dequantize().double().T
    if bias is not None:
        expected += bias.double()
    return ((y.double() - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


def check(weight, rows, dtype, config, bias=False):
    out, columns = weight.shape
    x = activations(rows, columns, dtype)
    added = torch.randn(out, generator=torch.Generator().manual_seed(2)) if bias else None
    y = product(x, layout.derive(weight), added, config)
    assert error(y, x, weight, added) < TOLERANCE[dtype]


@needs_compiler
def test_a_product_with_padding_everywhere(on_cpu):
    check(random_binary((40, 96), 3, 32), 33, torch.bfloat16, Config(64, 2, 1, 1), bias=True)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "config, rows, out",
    [
        (Config(64, 4, 1, 1), 64, 300),
        (Config(64, 2, 2, 2), 70, 150),
        (Config(128, 2, 4, 1), 100, 520),
        (Config(192, 2, 1, 2), 150, 128),
        (Config(256, 2, 2, 2), 200, 200),
        (Config(64, 2, 2, 4, 2), 64, 256),
        (Config(32, 1, 1, 2, k_groups=4), 20, 64),
        (Config(64, 2, 1, 1, k_groups=2), 64, 128),
    ],
    ids=str,
)
def test_every_division_of_the_work(on_cpu, config, rows, out):
    check(random_binary((out, 1024), 2, 128), rows, torch.bfloat16, config)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "weight",
    [
        random_binary((64, 256), 1, 32, shift=False),
        random_binary((64, 512), 4, 64, dtype=torch.float32),
        random_binary((64, 1152), 2, 384),
        random_binary((64, 1024), 3, 256, shift=False),
        random_binary((64, 512), 8, 128),
        random_uniform((64, 512), 4, 128, zero_points="middle"),
        random_uniform((64, 256), 8, 64, zero_points="integer"),
        random_uniform((64, 512), 3, 512, zero_points="real"),
        random_uniform((64, 512), 2, 32, zero_points="real", dtype=torch.float32),
    ],
    ids=lambda weight: f"{weight.format}-{weight.bits}-{weight.group_size}",
)
def test_every_kind_of_weight(on_cpu, weight):
    check(weight, 40, torch.float16, Config(64, 1, 1, 1))


@needs_compiler
@pytest.mark.slow
def test_a_row_has_the_same_bits_in_every_batch_and_run(on_cpu):
    planes = layout.derive(random_binary((64, 1024), 3, 128))
    x = activations(40, 1024, torch.bfloat16)
    config = Config(64, 1, 1, 2)
    y = product(x, planes, None, config)
    assert torch.equal(y, product(x, planes, None, config))
    assert torch.equal(y[5:38], product(x[5:38].contiguous(), planes, None, config))


@needs_compiler
@pytest.mark.slow
def test_rows_that_do_not_begin_at_16_bytes(on_cpu):
    weight = random_uniform((32, 512), 3, 128)
    storage = torch.randn(40 * 512 + 1, generator=torch.Generator().manual_seed(3)).bfloat16()
    x = storage[1:].view(40, 512)
    y = product(x, layout.derive(weight), None, Config(64, 1, 1, 1))
    assert error(y, x, weight, None) < TOLERANCE[torch.bfloat16]


def planes_of(bits, group_size=128, columns=4096):
    return layout.derive(random_binary((16, columns), bits, group_size))


@pytest.mark.parametrize("rows", [33, 64, 100, 256, 5000])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_configurations_fit_a_multiprocessor(rows, bits):
    planes = planes_of(bits, 32)
    configs = [*wide_rows.configurations(rows, planes), wide_rows.default(rows, planes, 132)]
    for config in configs:
        x_stages, w_stages = wide_rows.stages(planes, config)
        assert x_stages >= 4 and w_stages >= 2
        assert w_stages % config.k_groups == 0
        assert config.k_groups == 1 or x_stages % (4 * config.k_groups) == 0
        block = wide_rows.shared_bytes(planes, config) + 1024
        assert config.blocks * block <= 228 << 10
        registers = wide_rows.consumer_registers(config) * config.groups + 24
        assert config.blocks * registers * 128 <= 65536
        assert config.share * config.splits <= 8  # what a cluster may have everywhere


def test_it_serves_many_rows_on_hopper_alone():
    planes = planes_of(3)
    assert wide_rows.serves(planes, 64, 90) is None
    assert "17 rows and more" in wide_rows.serves(planes, 16, 90)
    assert "Hopper" in wide_rows.serves(planes, 64, 80)


ENDS = {  # weights whose scales can be multiplied, and those scales
    "binary": (random_binary((64, 256), 3, 32, dtype=torch.float32), ("alpha", "shift")),
    "uniform": (random_uniform((64, 256), 4, 64, dtype=torch.float32), ("scale",)),
    "binary, in half precision": (random_binary((64, 256), 3, 32), ("alpha", "shift")),
}


def at_the_ends(name):
    """The kind's weight, as large and as small as it is served, and twice and half as large."""
    weight, parts = ENDS[name]
    planes = layout.derive(weight)
    limits = torch.finfo(torch.float16)
    largest = needed = planes.params.float().abs().sum(3).amax().item()
    if planes.uniform:
        scale, zero = planes.params.unbind(3)
        largest = (scale * torch.maximum(zero, 15 - zero)).amax().item()
        needed = scale.amax().item()
    factor = 64 if planes.meta32 else 1
    power = 2.0 ** math.floor(math.log2(limits.max / factor / largest))
    powers = [(power, 2 * power)]
    if planes.meta32:
        power = 2.0 ** math.ceil(math.log2(limits.tiny / factor / needed))
        powers.append((power, power / 2))
    for inside, outside in powers:
        yield tuple(times(weight, parts, power) for power in (inside, outside))


def times(weight, parts, factor):
    tensors = weight.to_tensors()
    for part in parts:
        tensors[part] = tensors[part] * factor
    return type(weight).from_tensors(tensors, weight.spec())


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_weights_at_the_ends_of_half_precision(on_cpu, name):
    x = normal(40, 256, seed=1).bfloat16()
    for weight, _ in at_the_ends(name):
        y = product(x, layout.derive(weight), None, Config(64, 1, 1, 1))
        assert error(y, x, weight, None) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("name", ENDS)
def test_weights_beyond_half_precision_are_left_to_others(name):
    hopper = Gpu("", 90, 132)
    for weight, beyond in at_the_ends(name):
        served, refused = layout.derive(weight), layout.derive(beyond)
        assert choose(100, served, torch.bfloat16, hopper).kernel == "wide_rows"
        assert "does not hold these" in wide_rows.serves(refused, 100, 90)
        assert choose(100, refused, torch.bfloat16, hopper).kernel == "dequantize"
        assert not layout.joined([served, refused]).in_half


def test_a_zero_point_beyond_half_precision_is_left_to_others():
    weight = random_uniform((64, 256), 4, 64, zero_points="real", dtype=torch.float32)
    tensors = weight.to_tensors()
    tensors["scale"] = tensors["scale"] * 1e-6
    tensors["zero_point"] = tensors["zero_point"] - 65000
    planes = layout.derive(type(weight).from_tensors(tensors, weight.spec()))
    assert "does not hold these" in wide_rows.serves(planes, 100, 90)


@pytest.mark.slow
@pytest.mark.skipif(toolchain.unavailable() is not None, reason=str(toolchain.unavailable()))
@pytest.mark.parametrize("rows", [64, 128, 192, 256])
@pytest.mark.parametrize("bits, group_size", [(1, 128), (3, 128), (4, 4096), (8, 32)])
def test_products_stay_asynchronous_and_registers_suffice(rows, bits, group_size):
    planes = planes_of(bits, group_size)
    config = Config(rows, 2, 2, 2)
    # Also of a configuration that finds no room beside so many parameters.
    rings = dict(zip(wide_rows.STAGES, wide_rows.stages(planes, config), strict=True))
    macros = wide_rows._of_planes(planes, torch.bfloat16) | rings | wide_rows._of(config)
    log = ptxas_log("wide_rows.cu", macros)
    assert "multiply_wide" in log
    assert log.count("0 bytes spill stores, 0 bytes spill loads") == 2  # and in prepare
    assert "serialized" not in log


def ptxas_log(source, macros):
    """What the assembler says of a source for sm_90a."""
    from cuda.bindings import nvrtc

    headers = {path.name: path.read_bytes() for path in SOURCES.glob("*.cuh")}
    names = [name.encode() for name in headers]
    text = (SOURCES / source).read_bytes()
    _, program = nvrtc.nvrtcCreateProgram(
        text, source.encode(), len(headers), list(headers.values()), names
    )
    options = [b"--gpu-architecture=sm_90a", b"--ptxas-options=-v"]
    options += [option.encode() for option in toolchain.OPTIONS]
    options += [f"-D{name}={value}".encode() for name, value in macros.items()]
    status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    assert not status, log.decode()
    return log.decode()
