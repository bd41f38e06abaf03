"""Products on the CPU: every instruction set, width and mode against float64; nothing by chance."""

from __future__ import annotations

import copy
import shutil
import subprocess

import pytest
import torch
from torch import nn

from places import ROOT
from qbench.checkpoint.packed_linear import QuantLinear
from qbench.checks.kernel_trial import views_of
from qbench.errors import ConfigError
from qbench.formats import Binary, Uniform
from qbench.kernels import dispatch
from qbench.kernels.cpu import products as cpu
from qbench.kernels.cpu.library import best_isa
from qbench.kernels.layouts import forget
from samples import binary_weight as binary
from samples import normal
from samples import uniform_weight as uniform

pytestmark = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f"cpu-binary: {cpu.unavailable()}"
)
# At most, in units of the sum over the groups of sum |x| sum_i |alpha_i|, as the kernels state it:
EXACT_ERROR = 2.5e-6
FAST_ERROR = {"portable": 5e-4, "avx2": 8e-3, "avx512": 5e-4}
ISAS = [isa for isa in range(len(cpu.ISAS)) if cpu.unavailable() is None and isa <= best_isa()]
SHAPES = [
    (5, 64, 32),
    (33, 192, 64),
    (40, 288, 96),
    (70, 384, 128),
    (31, 544, 544),
]  # out, in, group size


def made(kind, out, columns, bits, group):
    """One of the forms that a weight of this kind can have, each of which some width gets."""
    dtype = (torch.float16, torch.float32)[bits % 2]
    if kind == "binary":
        return binary(out, columns, bits, group, shift=bits % 3 != 0, dtype=dtype)
    return uniform(out, columns, bits, group, ("integer", "real", "middle")[bits % 3], dtype)


def activations(rows, columns, dtype=torch.float32, seed=1):
    x = normal(rows, columns, seed=seed)
    x[:, 3] *= 100  # an outlier channel, as models have them
    return x.to(dtype)


def exactly(x, weight, bias=None):
    y = x.double() @ weight.dequantize().double().T
    return y if bias is None else y + bias.double()


def far(y, expected):
    return ((y.double() - expected).norm() / expected.norm()).item()


def stated_bound(x, weight, part):
    """part * sum over groups of |x|_1 sum_i |alpha_i|, (rows, out)."""
    sizes = (
        Binary.from_uniform(weight).alpha.abs()
        if isinstance(weight, Uniform)
        else weight.alpha.float().abs()
    )
    return (
        part
        * x.double().abs().unflatten(1, (-1, weight.group_size)).sum(-1)
        @ sizes.double().sum(-1).T
    )


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: cpu.ISAS[isa])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", ["binary", "uniform"])
def test_products_against_float64(kind, bits, isa):
    for number, (out, columns, group) in enumerate(SHAPES):
        weight = made(kind, out, columns, bits, group)
        packed = cpu.Derived(weight, isa)
        bias = normal(out, seed=2) if number % 2 else None
        for rows in (1, 2, 3, 4, 7, 8)[number % 2 :: 2]:
            x = activations(rows, columns)
            expected = exactly(x, weight, bias)
            y = packed.product(x, bias, cpu.EXACT)
            assert far(y, expected) < 1e-6
            assert (
                (y - expected).abs()
                <= stated_bound(x, weight, EXACT_ERROR) + 1e-6 * expected.abs().max()
            ).all()
            y = packed.product(x, bias, cpu.FAST)
            assert (
                (y - expected).abs()
                <= stated_bound(x, weight, FAST_ERROR[cpu.ISAS[isa]]) + 1e-6 * expected.abs().max()
            ).all()


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: cpu.ISAS[isa])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", ["binary", "uniform"])
def test_dequantized_tiles_are_the_weight(kind, bits, isa):
    for out, columns, group in SHAPES:
        weight = made(kind, out, columns, bits, group)
        for dtype in (torch.float32, torch.bfloat16):
            first = 32 if out > 32 else 0
            found = cpu.Derived(weight, isa).dequantize(
                first, out, torch.empty(out, columns, dtype=dtype)
            )
            assert torch.equal(found, weight.dequantize()[first:].to(dtype))


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: cpu.ISAS[isa])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("mode", [cpu.EXACT, cpu.FAST])
def test_bits_depend_neither_on_threads_nor_on_the_batch(mode, bits, isa):
    packed, x = cpu.Derived(binary(200, 384, bits, 128), isa), activations(11, 384)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        y = packed.product(x, None, mode)
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(packed.product(x, None, mode), y)
    finally:
        torch.set_num_threads(threads)
    for rows in range(1, 11):
        assert torch.equal(packed.product(x[:rows], None, mode), y[:rows])


@pytest.mark.parametrize("rows", [1, 8, 9, 64, 67])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["binary", "uniform"])
def test_layers_of_every_batch_and_dtype(kind, dtype, rows):
    weight = made(kind, 70, 384, 3, 128)
    bias = normal(70, seed=2).to(dtype)
    layer, x = QuantLinear(weight, bias), activations(rows, 384, dtype)
    dispatch.served(clear=True)
    y = layer(x)
    assert dispatch.served() == {"cpu-binary": 1} and y.dtype == dtype and y.shape == (rows, 70)
    assert far(y, exactly(x, weight, bias)) < (1e-5 if dtype == torch.float32 else 1e-2)
    if not cpu.Derived(weight).by_tables(x):
        torch.testing.assert_close(y, nn.functional.linear(x, weight.dequantize().to(dtype), bias))


@pytest.mark.parametrize("rows", [3, 60])
def test_any_strides_of_x(rows):
    layer = QuantLinear(binary(70, 384, 3, 128), None)
    x = activations(rows, 768)
    for view in (
        x[:, ::2],
        x[:, 384:],
        activations(384, 60).T[:rows],
        x[:, :384].expand(2, -1, -1),
    ):
        assert torch.equal(layer(view), layer(view.contiguous()))
    assert layer(x[:0, :384]).shape == (0, 70) and layer(x[0, :384]).shape == (70,)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: cpu.ISAS[isa])
@pytest.mark.parametrize("mode", [cpu.EXACT, cpu.FAST])
def test_numbers_at_the_ends_of_their_range(mode, isa):
    weight = binary(33, 256, 3, 128)
    packed = cpu.Derived(weight, isa)
    assert not packed.product(torch.zeros(1, 256), None, mode).any()
    for scale in (1e-32, 1e-20, 1e30):
        x = activations(1, 256) * scale
        assert far(packed.product(x, None, mode), exactly(x, weight)) < (
            1e-6 if mode == cpu.EXACT else 1e-2
        )
    x = activations(1, 256) * 1e-37  # less digits, and not none
    assert far(packed.product(x, None, mode), exactly(x, weight)) < 1e-2
    for value in (float("inf"), float("nan"), 3e38):
        x = activations(2, 256)
        x[0, 200:202] = value
        y = packed.product(x, None, mode)
        assert y[0].isnan().all() and y[1].isfinite().all()


def test_what_changes_is_packed_again():
    layer, other = (
        QuantLinear(binary(40, 64, 3, 32), None),
        QuantLinear(binary(40, 64, 3, 32, seed=5), None),
    )
    x = activations(2, 64)
    first = layer(x)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x)) and not torch.equal(layer(x), first)
    layer.alpha.mul_(2)
    assert far(layer(x), exactly(x, layer.quantized())) < 1e-6
    layer.load_state_dict(QuantLinear(binary(40, 64, 3, 32), None).state_dict(), assign=True)
    assert torch.equal(layer(x), first)
    assert torch.equal(copy.deepcopy(layer).to(torch.float64)(x), first)
    with torch.inference_mode():
        assert torch.equal(layer(x), first)


def test_views_of_a_weight_are_other_weights():
    x = activations(2, 256)
    for weight in (binary(40, 256, 3, 64), uniform(40, 256, 4, 64, "integer")):
        for view in views_of(weight).values():
            for each in (weight, view, weight):
                assert far(dispatch.linear(x, each), exactly(x, each)) < 1e-6


def test_a_write_behind_torch_is_read_after_forget():
    weight, x = binary(40, 64, 3, 32), activations(2, 64)
    dispatch.linear(x, weight)
    weight.alpha.data.mul_(2)
    weight.planes.numpy()[:, 0] = 0
    forget(weight)
    assert far(dispatch.linear(x, weight), exactly(x, weight)) < 1e-6


def test_a_layout_lives_as_long_as_its_weight():
    before = len(cpu._layouts._known)
    layer = QuantLinear(binary(40, 64, 3, 32), None)
    layer(activations(1, 64))
    assert len(cpu._layouts._known) == before + 1
    alias = layer.planes.detach()
    del layer
    assert len(cpu._layouts._known) == before + 1
    del alias
    assert len(cpu._layouts._known) == before


@pytest.mark.parametrize(
    "kind, parts", [("binary", ("planes", "alpha", "shift")), ("uniform", ("codes", "scale"))]
)
def test_a_layout_takes_no_more_memory_than_the_weight(kind, parts):
    weight = binary(64, 512, 3, 128) if kind == "binary" else uniform(64, 512, 3, 128, "middle")
    assert cpu.Derived(weight).memory.nbytes == sum(
        weight.to_tensors()[part].nbytes for part in parts
    )


def test_compiled_and_checked():
    torch._dynamo.reset()
    layer = QuantLinear(binary(40, 64, 3, 32), torch.randn(40))
    x = activations(2, 64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    dispatch.served(clear=True)
    assert torch.equal(compiled(x), layer(x)) and dispatch.served() == {"cpu-binary": 2}
    layouts = len(cpu._layouts._known)
    compiled(x)
    assert len(cpu._layouts._known) == layouts, "an alias of a weight has the same layout"
    arguments = (x.requires_grad_(), list(layer.tensors().values()), layer.bias, layer.call)
    torch.library.opcheck(torch.ops.qbench.linear.default, arguments)


def test_what_does_not_fit():
    layer = QuantLinear(binary(40, 64, 3, 32), None)
    with pytest.raises(
        ConfigError, match=r"x \(2, 63\) torch.float32 does not fit a weight of shape \(40, 64\)"
    ):
        layer(torch.zeros(2, 63))
    with pytest.raises(ConfigError, match=r"x \(\) torch.float32 does not fit"):
        layer(torch.tensor(1.0))
    with pytest.raises(ConfigError, match=r"x \(2, 64\) torch.int64 does not fit"):
        layer(torch.zeros(2, 64, dtype=torch.int64))
    with pytest.raises(
        ConfigError,
        match=r"bias \(39,\) torch.float32 does not fit a weight of shape \(40, 64\); .* \(40,\)",
    ):
        dispatch.linear(torch.zeros(2, 64), layer.quantized(), torch.zeros(39))
    with pytest.raises(ConfigError, match="x is on meta, and its weight on cpu"):
        dispatch._linear(
            torch.zeros(2, 64, device="meta"), list(layer.tensors().values()), None, layer.call
        )


@pytest.mark.slow
def test_the_c_kernels_under_the_sanitizers():
    if not (shutil.which("cc") and shutil.which("make")):
        pytest.skip("no C compiler and make")
    done = subprocess.run(["make", "sanitize"], cwd=ROOT, capture_output=True, text=True)
    if "cannot find" in done.stderr and "san" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "64 weights" in done.stdout
