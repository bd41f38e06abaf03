"""compressed-tensors' packed weights, written by their definition and read back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.errors import ModelError
from qbench.exchange.compressed_settings import packed_schemes, scheme_in_words
from qbench.exchange.compressed_tensors import (
    PackedScheme,
    dequantize_compressed,
    from_compressed,
    groups_are_in_order,
)
from qbench.formats.packing import unpack
from samples import integers, scales


def word(codes, bits):
    """One word by definition: code i in the bits i*bits and up; signed, as torch has no uint32."""
    number = sum(code << (bits * i) for i, code in enumerate(codes)) & 0xFFFFFFFF
    return number - 2**32 if number >= 2**31 else number


def stream(rows, bits):
    """(n, count) codes -> (n, words): the bits of a row one after the other, as newer versions."""
    lines = []
    for row in rows.tolist():
        number = sum(code << (bits * i) for i, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        lines.append([word([(number >> (32 * k)) & 0xFFFFFFFF], 32) for k in range(count)])
    return torch.tensor(lines, dtype=torch.int32)


def broken(rows, bits):
    """(n, count) codes -> (n, words): 32 // bits whole codes a word, as older versions."""
    each = 32 // bits
    lines = []
    for row in rows.tolist():
        lines.append([word(row[k : k + each], bits) for k in range(0, len(row), each)])
    return torch.tensor(lines, dtype=torch.int32)


def layer(out, inputs, groups, bits=4, zeros=True, pack=stream, seed=0):
    """codes (out, in), zero points (out, groups), and the tensors of a checkpoint."""
    codes = integers((out, inputs), 0, 2**bits, seed)
    zero = integers((out, groups), 0, 2**bits, seed + 1)
    tensors = {
        "weight_packed": pack(codes, bits),
        "weight_scale": scales((out, groups), seed).half(),
        "weight_shape": torch.tensor([out, inputs]),
    }
    if zeros:
        tensors["weight_zero_point"] = pack(zero.T, bits).T.contiguous()
    else:
        zero = torch.full_like(zero, 2 ** (bits - 1))
    return codes, zero, tensors


def scheme(bits, size):
    return [PackedScheme(bits, size)]


@settings(deadline=None, max_examples=80)
@given(
    out=st.integers(1, 20),
    group=st.integers(1, 20),
    groups=st.integers(1, 4),
    bits=st.sampled_from([1, 2, 4, 8]),
    zeros=st.booleans(),
    pack=st.sampled_from([stream, broken]),
    seed=st.integers(0, 99),
)
def test_what_the_definition_packs_is_read_exactly(out, group, groups, bits, zeros, pack, seed):
    inputs = group * groups
    codes, zero, tensors = layer(out, inputs, groups, bits, zeros, pack, seed)
    stated = scheme(bits, group if groups > 1 else None)
    weight = from_compressed(tensors, stated)
    assert weight.shape == (out, inputs) and weight.group_size == group and weight.bits == bits
    assert torch.equal(weight.unpacked()[0].flatten(1), codes)
    assert torch.equal(weight.scale, tensors["weight_scale"])
    if weight.zero_point is None:
        assert (zero == 2 ** (bits - 1)).all()
    else:
        assert torch.equal(unpack(weight.zero_point, bits, groups), zero)
    by_column = torch.arange(inputs) // group
    difference = codes.double() - zero.double()[:, by_column]
    expected = difference * tensors["weight_scale"].double()[:, by_column]
    torch.testing.assert_close(weight.dequantize().double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(dequantize_compressed(tensors, stated), weight.dequantize())


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
@pytest.mark.parametrize("pack", [stream, broken])
def test_both_ways_of_packing_odd_bits_are_told_apart(bits, pack):
    codes, zero, tensors = layer(96, 96, 3, bits, True, pack)
    weight = from_compressed(tensors, scheme(bits, 32))
    assert torch.equal(weight.unpacked()[0].flatten(1), codes)
    assert torch.equal(unpack(weight.zero_point, bits, 3), zero)


def test_where_both_ways_take_as_many_words_it_is_refused():
    _, _, tensors = layer(4, 20, 1, 3, False)  # 20 codes of 3 bits: two words in either way
    with pytest.raises(ModelError, match="packs 20 codes of 3 bits into 2 words, which versions"):
        from_compressed(tensors, scheme(3, None))


def test_numbers_are_signed_there_and_shifted_where_they_are_packed():
    """The library's own example: at 8 bits 1 and 2 become 129 and 130, the word 33409."""
    tensors = {
        "weight_packed": torch.tensor([[33409]], dtype=torch.int32),
        "weight_scale": torch.tensor([[0.5]]).half(),
        "weight_shape": torch.tensor([1, 2]),
    }
    weight = from_compressed(tensors, scheme(8, None))
    assert weight.dequantize().tolist() == [[0.5, 1.0]] and weight.zero_point is None
    plain = tensors | {"weight_zero_point": torch.tensor([[-3]], dtype=torch.int8)}
    assert from_compressed(plain, scheme(8, None)).dequantize().tolist() == [[2.0, 2.5]]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_may_serve_the_whole_matrix(shape):
    codes, _, tensors = layer(6, 16, 1, 4, False)
    tensors["weight_scale"] = torch.full(shape, 0.25).half()
    tensors["weight_zero_point"] = torch.full(shape, 1, dtype=torch.int8)
    weight = from_compressed(tensors, scheme(4, None))
    assert torch.equal(weight.dequantize(), (codes.float() - 9) * 0.25)


def test_scales_in_bfloat16_stay_16_bits_where_that_is_exact():
    _, _, tensors = layer(6, 16, 1, 4, False)
    tensors["weight_scale"] = tensors["weight_scale"].bfloat16()
    assert from_compressed(tensors, scheme(4, None)).scale.dtype == torch.float16
    tensors["weight_scale"] = torch.full((6, 1), 1e-10).bfloat16()
    weight = from_compressed(tensors, scheme(4, None))
    assert torch.equal(weight.scale, tensors["weight_scale"].float())


def test_groups_that_actorder_scatters_are_dequantized_exactly():
    codes, zero, tensors = layer(6, 16, 4)
    order = torch.tensor([3, 0, 1, 2, 1, 0, 3, 2, 2, 2, 3, 3, 1, 1, 0, 0], dtype=torch.int32)
    tensors["weight_g_idx"] = order
    stated = scheme(4, 4)
    assert not groups_are_in_order(tensors, stated)
    with pytest.raises(ModelError, match="scatters its groups over the inputs"):
        from_compressed(tensors, stated)
    got = dequantize_compressed(tensors, stated)
    for row in range(6):
        for column, group in enumerate(order.tolist()):
            scale = tensors["weight_scale"][row, group].item()
            difference = int(codes[row, column]) - int(zero[row, group])
            assert got[row, column].item() == scale * difference
    for nothing in (torch.full((16,), -1, dtype=torch.int32), torch.arange(16) // 4):
        tensors["weight_g_idx"] = nothing
        assert groups_are_in_order(tensors, stated)
    tensors["weight_g_idx"] = torch.zeros(16, dtype=torch.int32)
    with pytest.raises(ModelError, match="does not assign 16 inputs to 4 groups of 4"):
        groups_are_in_order(tensors, stated)


def test_the_bits_of_a_layer_are_seen_on_its_tensors():
    _, _, tensors = layer(6, 64, 2, 8)
    assert from_compressed(tensors, [PackedScheme(4, 32), PackedScheme(8, 32)]).bits == 8
    with pytest.raises(ModelError, match=r"16 words for 64 inputs, .* bits \[4\] none fit"):
        from_compressed(tensors, scheme(4, 32))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight_shape": None}, "lacks weight_shape; fetch"),
        ({"weight_scale": None}, "lacks weight_scale"),
        ({"weight_shape": torch.tensor([6, 96, 1])}, "weight_shape of .* wanted is two integers"),
        ({"weight_shape": torch.tensor([-6, 96])}, "which no matrix has"),
        ({"weight_shape": torch.tensor([5, 96])}, "weight_packed of .* int32 with 5 rows"),
        ({"weight_packed": torch.zeros(2, 6, 12, dtype=torch.int32)}, "weight_packed of"),
        ({"weight_packed": torch.zeros(6, 12, dtype=torch.int64)}, "weight_packed .* torch.int64"),
        ({"weight_scale": torch.ones(6, 2).half()}, "2 groups for 96 inputs, which its group_size"),
        ({"weight_scale": torch.ones(6, 5).half()}, "5 groups for 96 inputs"),
        ({"weight_scale": torch.ones(6, 0).half()}, "0 groups for 96 inputs"),
        ({"weight_scale": torch.ones(5, 3).half()}, "weight_scale of .* wanted is 6 rows"),
        ({"weight_scale": torch.ones(6, 3).int()}, "wanted is floating numbers"),
        ({"weight_zero_point": torch.zeros(2, 3, dtype=torch.int32)}, "weight_zero_point of"),
        ({"weight_zero_point": torch.zeros(6, 2, dtype=torch.int8)}, "weight_zero_point of"),
        ({"weight_zero_point": torch.zeros(3, 6, dtype=torch.int8)}, "weight_zero_point of"),
        ({"weight_scale": torch.ones(6, 3).to(torch.float8_e4m3fn)}, "wanted is floating numbers"),
        ({"weight_g_idx": torch.zeros(96)}, "weight_g_idx of .* wanted is int32 or int64"),
        ({"weight_zero_point": torch.full((6, 3), 8, dtype=torch.int8)}, "outside the 4 bits"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    _, _, tensors = layer(6, 96, 3)
    tensors |= {name: tensor for name, tensor in change.items() if tensor is not None}
    for name in [name for name, tensor in change.items() if tensor is None]:
        del tensors[name]
    with pytest.raises(ModelError, match=message):
        from_compressed(tensors, scheme(4, 32))


@pytest.mark.parametrize("groups", [1, 3])
def test_zero_points_that_are_stated_and_missing_are_no_default(groups):
    _, _, tensors = layer(6, 96, groups, zeros=False)
    size = 96 // groups if groups > 1 else None
    stated = [PackedScheme(4, size, symmetric=False), PackedScheme(8, size)]
    for read in (from_compressed, dequantize_compressed, groups_are_in_order):
        with pytest.raises(ModelError, match="lacks weight_zero_point, and .* symmetric=false for"):
            read(tensors, stated)
    assert from_compressed(tensors, [*stated, PackedScheme(4, size)]).zero_point is None
    _, _, whole = layer(6, 96, groups)
    assert from_compressed(whole, stated).zero_point is not None


def test_a_single_zero_point_may_have_been_left_out():
    """Older versions leave out zero points that are all 2^(bits-1), and a matrix may have one."""
    _, _, tensors = layer(6, 16, 1, 4, zeros=False)
    tensors["weight_scale"] = torch.full((1,), 0.25).half()
    assert from_compressed(tensors, [PackedScheme(4, None, symmetric=False)]).zero_point is None


def entry(form="pack-quantized", beside=(), in_group=(), **weights):
    stated = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32} | weights
    group = {"targets": ["Linear"], "weights": stated} | dict(in_group)
    return {"format": form, "config_groups": {"group_0": group}} | dict(beside)


def test_settings_are_those_of_the_groups():
    assert packed_schemes(entry()) == scheme(4, 32)
    assert packed_schemes(entry(strategy="channel", group_size=None)) == scheme(4, None)
    assert packed_schemes(entry(strategy=None, group_size=-1)) == scheme(4, None)
    assert packed_schemes(entry(symmetric=True)) == scheme(4, 32)
    assert packed_schemes(entry(symmetric=False)) == [PackedScheme(4, 32, symmetric=False)]
    mixed = entry("mixed-precision", in_group={"format": "pack-quantized"})
    mixed["config_groups"]["group_1"] = entry(num_bits=8)["config_groups"]["group_0"] | {
        "format": "pack-quantized"
    }
    mixed["config_groups"]["of_nothing"] = {"weights": None}
    assert packed_schemes(mixed) == [*scheme(4, 32), *scheme(8, 32)]
    assert scheme_in_words(mixed) == "4b/8b g32"
    assert scheme_in_words(entry(strategy="channel", group_size=None)) == "4b channel"


@pytest.mark.parametrize(
    "stated, message",
    [
        (entry("float-quantized", type="float", num_bits=8), "the format 'float-quantized' of"),
        (entry("nvfp4-pack-quantized"), "the format 'nvfp4-pack-quantized' of"),
        (entry("marlin-24"), "the format 'marlin-24' of .* only 'pack-quantized' is"),
        (entry("int-quantized"), "the format 'int-quantized' of"),
        (entry("mixed-precision"), "the format 'mixed-precision' of"),
        (entry(None), "the format None of"),
        (entry(type="float"), "the format 'pack-quantized of type float' of"),
        (entry(beside={"sparsity_config": {"format": "sparse-24-bitmask"}}), "'sparse-24-bitmask'"),
        (entry(beside={"kv_cache_scheme": {"num_bits": 8}}), "a quantized cache of keys"),
        (entry(beside={"transform_config": {"config_groups": {}}}), "rotations of the activations"),
        (entry(in_group={"input_activations": {"num_bits": 8}}), "input_activations, quantized"),
        (entry(strategy="block"), "the strategy 'block'; qbench reads group, channel, tensor"),
        (entry(num_bits=True), "num_bits=True; it must be from 1 to 8"),
        (entry(group_size=None), "group_size=None"),
        (entry(symmetric="false"), "symmetric='false', which is neither true nor false"),
        (entry(beside={"config_groups": []}), "config_groups=list, not an object"),
        (entry(beside={"config_groups": {"W4A16": ["Linear"]}}), "'W4A16' as a list"),
        (entry(beside={"config_groups": {"g": {"weights": None}}}), "state no weights"),
        (entry(beside={"config_groups": {"g": {"weights": "int4"}}}), "weights of 'g' as a str"),
        (entry(beside={"sparsity_config": "24"}), "the format '24' of"),
        (entry(beside={"moe_sparsity_config": {"experts": 2}}), "layers of fewer experts"),
    ],
)
def test_what_is_not_packed_integers_alone_is_refused_by_its_name(stated, message):
    with pytest.raises(ModelError, match=message):
        packed_schemes(stated)


@pytest.mark.parametrize(
    "other",
    [
        {"weights": None, "input_activations": {"num_bits": 4}},
        {"output_activations": {"num_bits": 8}},
        ["re:.*self_attn.*"],
    ],
)
def test_a_group_that_quantizes_no_weights_is_asked_for_activations_all_the_same(other):
    stated = entry()
    stated["config_groups"]["W8A8"] = other
    with pytest.raises(ModelError, match="'W8A8'.*; use the model before it was compressed"):
        packed_schemes(stated)
