"""What one instruction set computes: its integers, the choice of it, and its layout's size."""

from __future__ import annotations

import pytest
import torch

from command_line import run_command
from qbench.errors import ConfigError
from qbench.formats import Binary
from qbench.kernels.cpu import products as cpu
from qbench.kernels.cpu.library import ISA_VARIABLE, best_isa, chosen_isa
from qbench.kernels.registry import get_kernel
from qbench.latency.pytest_benchmark import as_benchmarks
from samples import binary_weight as binary
from samples import normal

pytestmark = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f"cpu-binary: {cpu.unavailable()}"
)
HERE = cpu.ISAS[: best_isa() + 1] if cpu.unavailable() is None else ()
AVX2 = cpu.ISAS.index("avx2")
# The largest sum |x| of 4 inputs for which the step of the tables is 1: 2^(6 digits - 1) - 8.
STEPS = {cpu.EXACT: 2**23 - 8, cpu.FAST: 2**11 - 8}
needs_avx2 = pytest.mark.skipif("avx2" not in HERE, reason="the processor has no AVX2")


def plain_weight(out, columns, bits, group):
    """Planes at random, alpha = 2^i and no shift: products with integers are integers."""
    weight = binary(out, columns, bits, group, shift=False)
    alpha = 2.0 ** torch.arange(bits).expand(out, columns // group, bits)
    return Binary(weight.planes, alpha.half(), None, columns, group)


@needs_avx2
@pytest.mark.parametrize("columns, group", [(32, 32), (96, 96), (384, 32), (384, 128), (384, 384)])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("mode", [cpu.EXACT, cpu.FAST])
def test_sums_are_those_of_integers(mode, bits, columns, group):
    """Where the step is 1 the tables hold sums of x itself: every digit of them must be right."""
    weight = plain_weight(45, columns, bits, group)
    x = torch.randint(-60, 61, (9, columns), generator=torch.Generator().manual_seed(3)).float()
    others = x.unflatten(1, (-1, 32))[..., 1:4].abs().sum(-1)
    sign = torch.tensor([1.0, -1.0]).repeat(5)[:9, None]
    x[:, ::32] = sign * (STEPS[mode] - others)  # (9, columns / 32): the largest 4 of each segment
    expected = x.long() @ weight.dequantize().long().T
    y = cpu.Derived(weight, AVX2).product(x, None, mode)
    largest = x.abs().sum(1).max() * (2**bits - 1)  # of all sums on the way
    limit = 0.0 if largest < 2**24 else 2.0**-22 * largest  # float32 holds integers up to 2^24
    assert (y.double() - expected).abs().max() <= limit


@needs_avx2
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_fast_products_are_more_precise_than_activations_of_8_bits(bits):
    weight = binary(256, 1024, bits, 128)
    x = normal(4, 1024, seed=1)
    expected = x.double() @ weight.dequantize().double().T
    step = x.unflatten(1, (-1, 128)).abs().amax(-1, keepdim=True) / 127
    rounded = ((x.unflatten(1, (-1, 128)) / step).round() * step).flatten(1)
    coarse = (rounded.double() @ weight.dequantize().double().T - expected).norm()
    y = cpu.Derived(weight, AVX2).product(x, None, cpu.FAST)
    assert (y - expected).norm() < 0.1 * coarse
    assert (y - expected).norm() / expected.norm() < get_kernel("cpu-binary-fast").error


@pytest.mark.parametrize("faster", [True, False])
def test_many_rows_are_multiplied_in_the_faster_dtype(monkeypatch, faster):
    """Products of bfloat16 in float32 are rounded once, at the end."""
    monkeypatch.setattr(cpu, "faster_in_bfloat16", lambda: faster)
    weight, bias = binary(70, 384, 3, 128), normal(70, seed=2).bfloat16()
    x = normal(200, 384, seed=1).bfloat16()
    packed = cpu.Derived(weight)
    assert not packed.by_tables(x)
    y = packed.linear(x, bias, cpu.EXACT)
    assert y.dtype == torch.bfloat16
    wide = weight.dequantize() if not faster else weight.dequantize().bfloat16().float()
    exact = x.double() @ wide.double().T + bias.double()
    # Half a unit in the last of 8 bits, and float32's own rounding.
    assert ((y - exact).abs() <= exact.abs() * 2.0**-8 + 1e-3).all()
    once = torch.nn.functional.linear(x.float(), weight.dequantize(), bias.float()).bfloat16()
    assert torch.equal(y, once) == (not faster)


@pytest.mark.parametrize("name", HERE)
def test_an_instruction_set_can_be_named(monkeypatch, name):
    monkeypatch.setenv(ISA_VARIABLE, name)
    assert cpu.ISAS[chosen_isa()] == name
    assert get_kernel("cpu-binary").describe().endswith(f"({name})")
    weight = binary(40, 64, 3, 32)
    x = normal(2, 64, seed=1)
    named = cpu.Derived(weight, cpu.ISAS.index(name)).product(x, None, cpu.EXACT)
    assert torch.equal(cpu.Derived(weight).product(x, None, cpu.EXACT), named)


def test_a_file_of_timings_tells_what_computed(monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, "portable")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    told = as_benchmarks([])["machine_info"]["instructions"]
    expected = {"kernels": "portable", "QBENCH_ISA": "portable", "ATEN_CPU_CAPABILITY": "default"}
    assert told == expected


def test_the_best_instruction_set_is_the_default(monkeypatch):
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    assert chosen_isa() == best_isa()


def test_an_instruction_set_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, "mmx")
    with pytest.raises(
        ConfigError,
        match=f"QBENCH_ISA='mmx' is not an instruction set of this processor; give one of "
        f"{', '.join(HERE)}, or unset it for {HERE[-1]}",
    ):
        cpu.Derived(binary(40, 64, 3, 32))


def test_a_wrong_name_is_one_sentence_on_the_command_line(monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, "mmx")
    done = run_command("list", "kernels")
    assert done.code == 2 and "QBENCH_ISA='mmx' is not an instruction set" in done.err
