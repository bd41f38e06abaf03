"""The Triton kernels against the reference, in Triton's interpreter; `test_triton.py` runs this."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)

from qbench.checks import kernels as kernel_checks
from qbench.formats import Binary, Lattice, Uniform
from qbench.kernels import reference, registry
from qbench.kernels.gpu import products as gpu
from qbench.kernels.gpu.triton_configs import Config
from qbench.kernels.gpu.triton_layout import derive

EXACT = 2e-6  # relative, in norm: sums of exact products in float32
ROUNDED = {
    torch.float16: 1e-3,
    torch.bfloat16: 1e-2,
}  # a few roundings of each weight to the dtype of x
SKINNY = Config("skinny", block_n=32, block_m=16, block_k=64, split=2)
LARGE = Config("large", block_n=32, block_m=16, block_k=64, split=2)


def binary(bits, out, columns, group, shift=True, dtype=torch.float16):
    g = torch.Generator().manual_seed(bits)
    alpha = torch.rand(out, columns // group, bits, generator=g)
    shifts = torch.randn(out, columns // group, generator=g).to(dtype) if shift else None
    return Binary.from_planes(torch.randn(bits, out, columns, generator=g), alpha.to(dtype), shifts)


def uniform(bits, out, columns, group, zero="integer"):
    g = torch.Generator().manual_seed(bits)
    scale = torch.rand(out, columns // group, generator=g).half()
    points = {
        "integer": torch.randint(0, 2**bits, scale.shape, generator=g).to(torch.uint8),
        "none": None,
    }
    points["real"] = 2**bits * torch.rand(scale.shape, generator=g)
    return Uniform.from_codes(
        torch.randint(0, 2**bits, (out, columns), generator=g), scale, points[zero], bits
    )


def error(weight, m=5, dtype=torch.float16, config=SKINNY, bias=False):
    g = torch.Generator().manual_seed(m)
    x = torch.randn(m, weight.shape[1], generator=g).to(dtype)
    b = torch.randn(weight.shape[0], generator=g) if bias else None
    expected = reference.linear(x.double(), weight, b)
    found = gpu.product(x, derive(weight), b, out=torch.float32, config=config)
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("make", [binary, uniform])
def test_bits(make, bits):
    weight = make(bits, 40, 128, 32)
    assert error(weight) < EXACT
    assert error(weight, config=LARGE) < ROUNDED[torch.float16]


@pytest.mark.parametrize(
    "out, columns, group",
    [(33, 192, 64), (70, 256, 128), (40, 160, 160), (33, 288, 96), (1, 32, 32)],
)
@pytest.mark.parametrize("make", [binary, uniform])
def test_groups_and_tails(make, out, columns, group):
    weight = make(3, out, columns, group)
    assert error(weight, bias=True) < EXACT
    assert error(weight, config=LARGE, bias=True) < ROUNDED[torch.float16]


@pytest.mark.parametrize("m", [1, 2, 5, 16, 17, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_batches_with_the_default_configuration(m, dtype):
    weight = binary(2, 130, 256, 128)
    rounds = dtype == torch.float16 and m > 16
    assert error(weight, m, dtype, config=None, bias=True) < (ROUNDED[dtype] if rounds else EXACT)


@pytest.mark.parametrize("make", [binary, uniform])
def test_the_bit_patterns_of_bfloat16(make):
    """The interpreter's arithmetic in bfloat16 is wrong, so it is done in float32 there."""
    weight = make(3, 40, 128, 64)
    assert error(weight, dtype=torch.bfloat16) < EXACT
    assert error(weight, dtype=torch.bfloat16, config=LARGE) < ROUNDED[torch.bfloat16]


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(binary(2, 8, 64, 32, shift=False), id="no-shift"),
        pytest.param(binary(2, 8, 64, 32, dtype=torch.float32), id="float32-scales"),
        pytest.param(uniform(4, 8, 64, 32, zero="none"), id="symmetric"),
        pytest.param(uniform(4, 8, 64, 32, zero="real"), id="real-zero-points"),
        pytest.param(Binary.from_uniform(uniform(3, 8, 64, 32)), id="binary-from-uniform"),
    ],
)
def test_scales_and_shifts(weight):
    assert error(weight) < EXACT
    assert error(weight, config=LARGE) < ROUNDED[torch.float16]


def test_the_parts_of_the_inputs_are_summed_the_same_way_every_time():
    planes, x = derive(binary(3, 40, 512, 64)), torch.randn(3, 512).half()
    first, *others = (
        gpu.product(x, planes, config=Config("skinny", block_m=8, split=4)) for _ in range(3)
    )
    assert all(torch.equal(first, other) for other in others)
    alone = gpu.product(x, planes, config=Config("skinny", block_m=8, split=1))
    torch.testing.assert_close(first, alone, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize(
    "m, out, columns, config",
    [
        (256, 256, 256, None),  # as 256 rows and 14336 outputs: whole blocks, one part
        (200, 200, 192, None),  # neither side is a multiple of its block
        (33, 70, 512, None),
        (16, 130, 1024, None),  # parts of the inputs
        (5, 33, 192, Config("large", 32, 16, 64, split=4)),  # parts without inputs
    ],
)
def test_every_output_is_written(m, out, columns, config, monkeypatch):
    """Memory that is handed out is full of numbers that would be seen."""
    made = []
    new_empty = torch.Tensor.new_empty

    def poisoned(tensor, *shape, **options):
        made.append(shape)
        memory = new_empty(tensor, *shape, **options)
        return memory.fill_(torch.nan) if memory.is_floating_point() else memory

    weight = binary(2, out, columns, 64)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    assert error(weight, m, config=config) < ROUNDED[torch.float16]
    assert (m, out) in made, "the outputs"


@pytest.mark.parametrize("make, group", [(binary, 32), (uniform, 96), (binary, 96)])
def test_dense_is_the_weight_in_half_precision(make, group):
    weight = make(3, 70, 288, group)
    torch.testing.assert_close(
        gpu.dense(derive(weight), torch.float16).float(), weight.dequantize(), rtol=2e-3, atol=4e-3
    )


@pytest.mark.parametrize(
    "features, bits, offset", [("codes", 3, True), ("signs", 2, False), ("signs", 4, True)]
)
def test_lattice(features, bits, offset):
    g = torch.Generator().manual_seed(0)
    d, out, columns = 4, 48, 96
    map = torch.randn(d, d if features == "codes" else d * bits, generator=g)
    shift = torch.randn(d, generator=g) if offset else None
    su, sv = torch.randn(columns, generator=g), torch.randn(out, generator=g)
    codes = torch.randint(0, 2**bits, (out, columns), generator=g)
    weight = Lattice.from_codes(codes, map, shift, su, sv, bits, features)
    x = torch.randn(2, 3, columns, generator=g)
    expected = reference.linear(x.double(), weight)
    torch.testing.assert_close(
        gpu.linear(x, derive(weight)).double(),
        expected,
        rtol=1e-4,
        atol=1e-4 * expected.abs().max(),
    )


def test_leading_axes_and_the_empty_batch():
    weight = binary(2, 8, 64, 32)
    x, bias = torch.randn(2, 3, 64), torch.randn(8)
    torch.testing.assert_close(
        gpu.linear(x, derive(weight), bias), reference.linear(x, weight, bias), rtol=1e-4, atol=1e-4
    )
    assert gpu.linear(x[:, :0], derive(weight)).shape == (2, 0, 8)


def test_the_registered_kernel_keeps_one_layout_for_a_weight():
    weight = binary(2, 8, 64, 32)
    parts, stated = (
        list(weight.to_tensors().values()),
        {"format": "binary", "parts": list(weight.to_tensors())},
    )
    stated["spec"] = weight.spec()
    x = torch.randn(3, 64)
    torch.testing.assert_close(
        gpu._run(x, parts, None, stated), reference.linear(x, weight), rtol=1e-4, atol=1e-4
    )
    kept = gpu._layouts.of(parts, stated)
    assert gpu._layouts.of([part.view_as(part) for part in parts], stated) is kept
    parts[1].zero_()
    assert gpu._layouts.of(parts, stated) is not kept


@pytest.mark.parametrize(
    "check",
    [
        kernel_checks.check_zero_rows,
        kernel_checks.check_range,
        kernel_checks.check_untouched,
        kernel_checks.check_written_weight,
        kernel_checks.check_prepared,
    ],
)
def test_promises_of_every_kernel(check, monkeypatch):
    """The others hold as well under the interpreter, and take minutes."""
    kernel = dataclasses.replace(
        gpu.KERNELS[0],
        name="interpreted",
        devices=("cpu",),
        dtypes=(torch.float16, torch.float32),
        available=lambda: None,
    )
    monkeypatch.setattr(registry, "_known", dict(registry.all_kernels()))
    registry.register(kernel)
    trial = kernel_checks.Trial(kernel)
    check(trial)
    assert trial.served
