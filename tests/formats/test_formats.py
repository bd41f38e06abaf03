"""Packing is exact, the formats mean what they say, and the bits are those of the bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.errors import StoreError
from qbench.formats import Binary, Dense, Lattice, Uniform, bits_per_weight, from_tensors
from qbench.formats.packing import as_stored, pack, packed_length, unpack
from qbench.registry import get_method
from qbench.scheme import Scheme
from samples import integers, normal, scales


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(1, 8), rows=st.integers(1, 5), n=st.integers(1, 70), seed=st.integers(0, 1000)
)
def test_pack_unpack_is_the_identity_and_takes_the_bits_it_says(bits, rows, n, seed):
    codes = integers((rows, n), 0, 2**bits, seed)
    stream = pack(codes, bits)
    assert stream.shape == (rows, packed_length(n, bits)) and stream.dtype == torch.uint8
    assert torch.equal(unpack(stream, bits, n), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_eight_codes_take_as_many_bytes_as_bits(bits):
    assert pack(integers((3, 64), 0, 2**bits), bits).numel() == 3 * 8 * bits


def test_the_layout_is_a_little_endian_bit_stream():
    assert pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]], dtype=torch.uint8), 3).tolist() == [
        [0xD1, 0x58, 0x1F]
    ]


def test_a_stream_of_the_wrong_length_is_refused():
    with pytest.raises(
        StoreError, match="do not hold 9 codes of 3 bits a row; expected uint8 with 4 bytes a row"
    ):
        unpack(torch.zeros(2, 3, dtype=torch.uint8), 3, 9)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("zero", ["integer", "real", "middle"])
def test_uniform_is_scale_times_code_minus_zero(bits, zero):
    codes, scale = integers((6, 48), 0, 2**bits), scales((6, 3)).half()
    kinds = {
        "integer": integers((6, 3), 0, 2**bits, 1),
        "real": scales((6, 3), 2).half(),
        "middle": None,
    }
    weight = Uniform.from_codes(codes, scale, kinds[zero], bits)
    z = torch.full((6, 3), 2.0 ** (bits - 1)) if kinds[zero] is None else kinds[zero].float()
    expected = (codes.view(6, 3, 16).double() - z.double()[..., None]) * scale.double()[..., None]
    torch.testing.assert_close(
        weight.dequantize().double(), expected.view(6, 48), rtol=1e-6, atol=0
    )
    stored = (
        6 * packed_length(48, bits)
        + 2 * 18
        + {"integer": 6 * packed_length(3, bits), "real": 36, "middle": 0}[zero]
    )
    assert bits_per_weight([weight])["total"] == pytest.approx(8 * stored / (6 * 48))


@pytest.mark.parametrize("bits", range(1, 9))
def test_binary_is_shift_plus_signed_alphas(bits):
    signs = integers((bits, 5, 40), 0, 2).double() * 2 - 1
    alpha, shift = scales((5, 5, bits)), scales((5, 5), 1) - 0.5
    weight = Binary.from_planes(signs, alpha, shift)
    expected = (signs.view(bits, 5, 5, 8) * alpha.double().permute(2, 0, 1)[..., None]).sum(
        0
    ) + shift.double()[..., None]
    torch.testing.assert_close(
        weight.dequantize().double(), expected.view(5, 40), rtol=1e-5, atol=1e-6
    )
    assert weight.planes.numel() == bits * 5 * 5 and weight.bits == bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_uniform_becomes_binary_exactly(bits):
    uniform = Uniform.from_codes(
        integers((7, 60), 0, 2**bits), scales((7, 5)).half(), integers((7, 5), 0, 2**bits, 3), bits
    )
    assert torch.equal(Binary.from_uniform(uniform).dequantize(), uniform.dequantize())


@pytest.mark.parametrize(
    "weight",
    [
        Uniform.from_codes(
            integers((4, 33), 0, 8), scales((4, 1)).half(), integers((4, 1), 0, 8), 3
        ),
        Binary.from_planes(integers((2, 4, 33), 0, 2), scales((4, 1, 2)), None),
        Dense(scales((4, 33))),
    ],
    ids=lambda weight: weight.format,
)
def test_tensors_and_spec_rebuild_the_weight(weight):
    again = from_tensors(weight.format, weight.to_tensors(), weight.spec())
    assert torch.equal(again.dequantize(), weight.dequantize()) and again.shape == (4, 33)


def test_unknown_formats_and_missing_parts_are_refused():
    with pytest.raises(StoreError, match="unknown weight format 'unifrom'. Did you mean 'uniform'"):
        from_tensors("unifrom", {}, {})
    with pytest.raises(
        StoreError, match=r"a 'uniform' weight cannot be built from parts \['codes'\]"
    ):
        from_tensors("uniform", {"codes": torch.zeros(1, 1)}, {"bits": 3})


def test_parameters_are_float16_unless_that_distorts_them():
    assert as_stored(torch.tensor([0.1, 3.0])).dtype == torch.float16
    assert as_stored(torch.tensor([1e5, 3.0])).dtype == torch.float32
    assert as_stored(torch.tensor([1e-6, 2e-5])).dtype == torch.float32
    assert as_stored(torch.tensor([1.0, 2e-6])).dtype == torch.float16  # off by 2 % at most
    assert as_stored(torch.tensor([1.0, 3e-8])).dtype == torch.float32  # would be off by half
    assert as_stored(torch.tensor([1.0, 1e-9])).dtype == torch.float32  # would be zero


def test_a_small_number_beside_a_large_one_does_not_count():
    """A shift is added to multiples of alpha, and a zero point to codes."""
    assert as_stored(torch.tensor([1e-9, 0.5]), beside=1.0).dtype == torch.float16
    assert as_stored(torch.tensor([1e-9]), beside=torch.tensor([1e-8])).dtype == torch.float32


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("method", ["rtn", "alternating", "greedy"])
def test_a_row_does_not_depend_on_larger_ones(method, bits):
    weight = normal(16, 64)
    weight[3] *= 1e-6
    quantizer = get_method(method)
    if bits > quantizer.bits[1]:
        pytest.skip("more bits than the method has")
    scheme = Scheme(bits, 32)
    error = (quantizer.quantize_weight(weight, scheme).dequantize()[3] - weight[3]).norm()
    alone = quantizer.quantize_weight(weight[3:4].clone(), scheme).dequantize()[0] - weight[3]
    assert error <= 1.1 * alone.norm()


@pytest.mark.parametrize("bits", [2, 8])
def test_a_uniform_weight_with_float32_scales_becomes_binary_within_rounding(bits):
    uniform = Uniform.from_codes(
        integers((7, 60), 0, 2**bits), scales((7, 5)), integers((7, 5), 0, 2**bits, 3), bits
    )
    exact = uniform.dequantize()
    assert (
        Binary.from_uniform(uniform).dequantize() - exact
    ).abs().max() < 1e-6 * exact.abs().max()


def test_what_stands_for_zero_is_float16():
    """Methods divide by the scale of a group, which is never quite zero."""
    assert as_stored(torch.full((4, 2), 1e-12)).dtype == torch.float16
    assert as_stored(torch.zeros(0, 2)).dtype == torch.float16


@pytest.mark.parametrize("shape", [(0, 4, 2), (4, 2), (1, 1, 4, 2), (2,)])
def test_a_binary_weight_of_no_planes_or_another_rank_is_refused(shape):
    planes = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(StoreError, match="planes"):
        Binary(planes, torch.ones(4, 1, shape[0]), None, in_features=16, group_size=16)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_codes_that_the_bits_hold_are_packed_and_no_others(bits, dtype):
    codes = torch.arange(2**bits)[None]
    if bits < 8 or dtype != torch.uint8:
        with pytest.raises(StoreError, match=f"to {2**bits}(.0)? do not fit {bits} bits; give"):
            pack((codes + 1).to(dtype), bits)
    assert torch.equal(unpack(pack(codes.to(dtype), bits), bits, 2**bits), codes)


@pytest.mark.parametrize("wrong", [-1, 8, 2.5, float("nan"), float("inf")])
def test_codes_out_of_range_do_not_run_into_their_neighbours(wrong):
    codes = torch.tensor([[wrong, 1, 2, 3, 0, 0, 0, 0]])
    scale = torch.ones(1, 1)
    lattice = (torch.eye(2), None, torch.ones(8), torch.ones(1))
    for make in (
        lambda: pack(codes, 3),
        lambda: Uniform.from_codes(codes, scale, None, 3),
        lambda: Lattice.from_codes(codes, *lattice, 3, "codes"),
    ):
        with pytest.raises(StoreError, match="codes (from .* do not fit 3 bits|of .* fractions)"):
            make()


BYTES, FULL = torch.zeros(4, 24, dtype=torch.uint8), torch.ones(4, 2)
PLANES, ALPHA = torch.zeros(3, 4, 8, dtype=torch.uint8), torch.ones(4, 2, 3)
CODES = torch.zeros(4, 64, dtype=torch.uint8)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Uniform(BYTES[:0], FULL[:0], None, 3, 64, 32), "expected 2 axes, none of them"),
        (lambda: Uniform(BYTES[0], FULL, None, 3, 64, 32), "'codes' .* expected 2 axes"),
        (lambda: Uniform(BYTES.tolist(), FULL, None, 3, 64, 32), "'codes' .* is a list; give a"),
        (lambda: Uniform(BYTES, FULL.tolist(), None, 3, 64, 32), "'scale' .* is a list; give a"),
        (lambda: Uniform(BYTES, None, None, 3, 64, 32), "'scale' .* is a NoneType; give a tensor"),
        (lambda: Uniform(BYTES, FULL, None, "3", 64, 32), "bits='3' cannot be packed; give 1 to 8"),
        (lambda: Uniform(BYTES, FULL, None, None, 64, 32), "bits=None cannot be packed"),
        (lambda: Uniform(BYTES, FULL, None, True, 64, 32), "bits=True cannot be packed"),
        (lambda: Uniform(BYTES, FULL, None, 3, 64, "32"), "group_size='32' does not divide 64"),
        (lambda: Uniform(BYTES, FULL, None, 3, 64, 32.0), "group_size=32.0 does not divide 64"),
        (lambda: Uniform(BYTES, FULL, None, 3, 0, 32), "group_size=32 does not divide 0 inputs"),
        (lambda: Uniform.from_codes(CODES, FULL[:, :0], None, 3), "'scale' .* none of them empty"),
        (lambda: Uniform.from_codes(CODES, torch.ones(4, 3), None, 3), "3 groups do not divide 64"),
        (lambda: Uniform.from_codes(CODES[0], FULL, None, 3), "'codes' .* expected 2 axes"),
        (
            lambda: Binary(PLANES[:0], ALPHA[..., :0], None, 64, 32),
            "'planes' .* none of them empty",
        ),
        (lambda: Binary(PLANES[:, :0], ALPHA[:0], None, 64, 32), "'planes' .* none of them empty"),
        (lambda: Binary(PLANES, ALPHA[0], None, 64, 32), "'alpha' .* expected 3 axes"),
        (lambda: Binary(PLANES, ALPHA, None, 64, None), "group_size=None does not divide 64"),
        (lambda: Binary.from_planes(CODES, ALPHA, None), "'planes' .* expected 3 axes"),
        (lambda: Dense(torch.zeros(0, 8)), "'weight' .* none of them empty"),
        (lambda: Dense(torch.zeros(8, 0)), "'weight' .* none of them empty"),
        (lambda: Dense(torch.zeros(8)), "'weight' .* expected 2 axes"),
        (lambda: Dense(torch.zeros(8, 8) * 1j), "torch.complex64 .* expected floating"),
        (lambda: Dense([[1.0]]), "'weight' .* is a list; give a tensor"),
    ],
)
def test_parts_that_are_no_weight_are_refused(make, sentence):
    with pytest.raises(StoreError, match=sentence):
        make()
