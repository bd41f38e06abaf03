"""GPTQ's layout: as it is defined, exact both ways, and refused where it cannot say the same."""

from __future__ import annotations

import dataclasses
from math import gcd

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qbench.errors import ConfigError, ModelError
from qbench.exchange.foreign import AUTO_ROUND, read_foreign
from qbench.exchange.gptq import (
    BITS,
    checkpoint_format,
    dequantize_gptq,
    from_gptq,
    groups_are_runs,
    to_gptq,
)
from qbench.files.shards import Shards
from qbench.formats import Uniform
from samples import integers, scales


def uniform(bits, shape, groups, seed=0, least_zero=1, symmetric=False):
    codes = integers(shape, 0, 2**bits, seed)
    zero = None if symmetric else integers((shape[0], groups), least_zero, 2**bits, seed + 1)
    return Uniform.from_codes(codes, scales((shape[0], groups), seed).half(), zero, bits)


@st.composite
def weights(draw, least_zero=1):
    bits = draw(st.sampled_from(BITS))
    step = 32 // gcd(32, bits)
    out, inputs = step * draw(st.integers(1, 5)), step * draw(st.integers(1, 7))
    groups = draw(st.sampled_from([n for n in range(1, inputs + 1) if inputs % n == 0]))
    return uniform(
        bits, (out, inputs), groups, draw(st.integers(0, 99)), least_zero, draw(st.booleans())
    )


def words(rows, bits):
    """By definition: the codes of a row one after the other, lowest bit first, in 32-bit words."""
    lines = []
    for row in rows.tolist():
        stream = sum(code << (bits * k) for k, code in enumerate(row))
        line = [(stream >> (32 * k)) & 0xFFFFFFFF for k in range(len(row) * bits // 32)]
        lines.append([word - 2**32 if word >= 2**31 else word for word in line])
    return torch.tensor(lines, dtype=torch.int32)


def same(left, right):
    assert (left.bits, left.in_features, left.group_size) == (
        right.bits,
        right.in_features,
        right.group_size,
    )
    assert left.to_tensors().keys() == right.to_tensors().keys()
    for name, tensor in left.to_tensors().items():
        assert (
            torch.equal(tensor, right.to_tensors()[name])
            and tensor.dtype == right.to_tensors()[name].dtype
        )


@settings(deadline=None, max_examples=80)
@given(weight=weights(), kind=st.sampled_from(["gptq", "gptq_v2"]))
def test_there_and_back_is_the_identity(weight, kind):
    tensors = to_gptq(weight, kind)
    group_size = weight.group_size if weight.group_size < weight.in_features else -1
    same(from_gptq(tensors, weight.bits, group_size, kind, sym=weight.zero_point is None), weight)


@settings(deadline=None, max_examples=40)
@given(weight=weights(least_zero=0))
def test_the_format_of_a_model_holds_all_its_zero_points(weight):
    kind = checkpoint_format([weight])
    same(
        from_gptq(
            to_gptq(weight, kind), weight.bits, weight.group_size, kind, weight.zero_point is None
        ),
        weight,
    )
    assert (kind == "gptq") == bool((weight.unpacked()[2] == 2 ** (weight.bits - 1)).all())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind, offset", [("gptq", 1), ("gptq_v2", 0)])
def test_the_layout_is_the_definition(bits, kind, offset):
    weight = uniform(bits, (64, 96), 3)
    codes, _, zero = weight.unpacked()
    tensors = to_gptq(weight, kind)
    assert torch.equal(tensors["qweight"], words(codes.flatten(1), bits).T)
    assert torch.equal(tensors["qzeros"], words(zero.T.long() - offset, bits))
    assert (
        torch.equal(tensors["scales"], weight.scale.T) and tensors["scales"].dtype == torch.float16
    )
    assert (
        tensors["g_idx"].tolist() == [i // 32 for i in range(96)]
        and tensors["g_idx"].dtype == torch.int32
    )
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "qweight": (96 * bits // 32, 64),
        "qzeros": (3, 64 * bits // 32),
        "scales": (3, 64),
        "g_idx": (96,),
    }


def test_three_bits_straddle_words_as_gptqmodel_packs_them():
    codes = integers((32, 32), 0, 8)
    weight = Uniform.from_codes(codes, scales((32, 1)).half(), None, 3)
    x = (
        codes.T.long()
    )  # (in, out), in the words of gptqmodel: 10 codes, 1 cut, 10 codes, 1 cut, 10 codes
    first = sum(x[i] << (3 * i) for i in range(10)) | (x[10] & 3) << 30
    second = x[10] >> 2 | sum(x[11 + i] << (3 * i + 1) for i in range(10)) | (x[21] & 1) << 31
    third = x[21] >> 1 | sum(x[22 + i] << (3 * i + 2) for i in range(10))
    assert torch.equal(to_gptq(weight)["qweight"], torch.stack([first, second, third]).int())


@pytest.mark.parametrize("bits", BITS)
def test_a_symmetric_weight_writes_the_midpoint(bits):
    weight = uniform(bits, (32, 32), 1, symmetric=True)
    read = from_gptq(to_gptq(weight), bits, -1, sym=False)
    assert read.zero_point is not None and (read.unpacked()[2] == 2 ** (bits - 1)).all()
    assert torch.equal(read.dequantize(), weight.dequantize())


def test_a_checkpoint_that_is_symmetric_in_name_only_keeps_its_zero_points():
    weight = uniform(4, (32, 32), 1)
    same(from_gptq(to_gptq(weight), 4, 32, sym=True), weight)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_codes_may_lie_anywhere_in_a_file(offset):
    weight = uniform(4, (8, 16), 1)
    buffer = torch.cat([torch.zeros(offset, dtype=torch.uint8), weight.codes.flatten()])
    shifted = dataclasses.replace(weight, codes=buffer[offset:].view(8, 8))
    assert torch.equal(to_gptq(shifted)["qweight"], to_gptq(weight)["qweight"])


def test_float32_parameters_are_taken_where_float16_and_integers_say_the_same():
    weight = uniform(4, (8, 16), 2)
    wide = Uniform.from_codes(
        weight.unpacked()[0].flatten(1), weight.scale.float(), weight.unpacked()[2], 4
    )  # float32 zero points
    for name, tensor in to_gptq(weight).items():
        assert torch.equal(tensor, to_gptq(wide)[name])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bits": 5}, "GPTQ has no codes of 5 bits; allowed are 2, 3, 4, 8; keep this model"),
        (
            {"shape": (32, 12)},
            "in_features=12 at 4 bits does not fill 32-bit words; GPTQ needs a multiple of 8",
        ),
        (
            {"shape": (36, 16)},
            "out_features=36 at 4 bits does not fill 32-bit words; GPTQ needs a multiple of 8",
        ),
        ({"bits": 3, "shape": (32, 48)}, "in_features=48 at 3 bits .* needs a multiple of 32"),
    ],
)
def test_shapes_and_bits_that_gptq_lacks_are_refused(change, message):
    values = {"bits": 4, "shape": (32, 16)} | change
    with pytest.raises(ConfigError, match=message):
        to_gptq(uniform(values["bits"], values["shape"], 1))


def test_parameters_that_gptq_lacks_are_refused():
    weight = uniform(4, (8, 16), 2)
    scale = weight.scale.float()
    scale[3, 1] = 0.1
    with pytest.raises(
        ConfigError, match=r"the scale 0\.100000001 \(output 3, group 1\) is not a float16 number"
    ):
        to_gptq(dataclasses.replace(weight, stored_scale=scale))
    zero = weight.unpacked()[2].half()
    zero[2, 0] = 7.25
    real = dataclasses.replace(weight, stored_zero=zero)
    for refuse in (to_gptq, lambda weight: checkpoint_format([weight])):
        with pytest.raises(
            ConfigError,
            match=r"the zero point 7\.25 \(output 2, group 0\) is not an integer of 32 bits",
        ):
            refuse(real)
    zero[2, 0] = 16
    with pytest.raises(
        ConfigError,
        match=r"zero point 16 cannot be stored in .* 'gptq', which holds 1\.\.15 at 4 bits",
    ):
        to_gptq(real)
    zero[2, 0] = 0
    with pytest.raises(
        ConfigError, match="zero point 0 cannot be stored in .* use 'gptq_v2', which holds 0"
    ):
        to_gptq(real)
    zero[2, 0] = -3
    with pytest.raises(ConfigError, match=r"zero point -3 .* 'gptq_v2', .* 0\.\.15 .* keep this"):
        to_gptq(real, "gptq_v2")
    huge = dataclasses.replace(weight, stored_zero=torch.full((8, 2), 3e9))
    with pytest.raises(ConfigError, match="the zero point 3e.09 .* is not an integer of 32 bits"):
        to_gptq(huge)
    with pytest.raises(ConfigError, match="unknown checkpoint format 'marlin' of GPTQ"):
        to_gptq(weight, "marlin")


def test_act_order_is_refused_unless_it_changes_nothing():
    weight = uniform(4, (8, 32), 2)
    tensors = to_gptq(weight)
    for trivial in (torch.zeros(0, dtype=torch.int32), tensors["g_idx"].long()):
        same(from_gptq(tensors | {"g_idx": trivial}, 4, 16), weight)
    same(
        from_gptq({name: tensor for name, tensor in tensors.items() if name != "g_idx"}, 4, 16),
        weight,
    )
    with pytest.raises(ModelError, match="act-order"):
        from_gptq(tensors | {"g_idx": tensors["g_idx"].flip(0)}, 4, 16)


@pytest.mark.parametrize("size", [8, 12, 32])
def test_zeros_in_g_idx_say_that_groups_are_runs(size):
    """Of 12 inputs a group, the last one is shorter, and the weight is dequantized."""
    tensors = to_gptq(uniform(4, (8, 32), 4), "gptq_v2")
    for part in ("qzeros", "scales"):
        tensors[part] = tensors[part][: -(-32 // size)]
    del tensors["g_idx"]
    zeros = tensors | {"g_idx": torch.zeros(32, dtype=torch.int32)}
    assert groups_are_runs(zeros, 4, size) == groups_are_runs(tensors, 4, size) == (size != 12)
    expected = dequantize_gptq(tensors, 4, size, "gptq_v2")
    assert torch.equal(dequantize_gptq(zeros, 4, size, "gptq_v2"), expected)
    if size != 12:
        assert torch.equal(from_gptq(zeros, 4, size, "gptq_v2").dequantize(), expected)


def test_zeros_of_another_length_are_no_g_idx():
    tensors = to_gptq(uniform(4, (8, 32), 2)) | {"g_idx": torch.zeros(16, dtype=torch.int32)}
    assert not groups_are_runs(tensors, 4, 16)
    with pytest.raises(ModelError, match=r"g_idx of a GPTQ layer has shape \(16,\)"):
        dequantize_gptq(tensors, 4, 16)


def test_groups_that_are_no_integers_are_refused():
    tensors = to_gptq(uniform(4, (8, 32), 2))
    tensors["g_idx"] = tensors["g_idx"] + 0.5  # truncated, these would be the groups
    reads = (from_gptq, dequantize_gptq, groups_are_runs)
    for read in reads:
        with pytest.raises(ModelError, match="g_idx of a GPTQ layer is torch.float32"):
            read(tensors, 4, 16)


def test_scattered_groups_are_dequantized_number_by_number():
    weight = uniform(4, (8, 32), 4)
    tensors = to_gptq(weight, "gptq_v2")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    tensors["g_idx"] = tensors["g_idx"][order]
    codes, scale, zero = weight.unpacked()
    got = dequantize_gptq(tensors, 4, 8, "gptq_v2")
    for row in range(8):
        for column, group in enumerate(tensors["g_idx"].tolist()):
            difference = float(codes[row].flatten()[column]) - float(zero[row, group])
            assert got[row, column].item() == float(scale[row, group]) * difference


def test_tensors_that_do_not_fit_are_refused():
    tensors = to_gptq(uniform(4, (8, 32), 2))
    with pytest.raises(ModelError, match="a GPTQ layer lacks qzeros, scales; it has"):
        from_gptq({"qweight": tensors["qweight"]}, 4, 16)
    with pytest.raises(ModelError, match="group_size=24 does not divide the 32 inputs"):
        from_gptq(tensors, 4, 24)
    with pytest.raises(
        ModelError, match=r"qzeros of a GPTQ layer has shape \(2, 1\) .* want \(4, 1\) in int32"
    ):
        from_gptq(tensors, 4, 8)
    with pytest.raises(
        ModelError, match=r"qweight of a GPTQ layer .* torch.int64; 4 bits .* in int32"
    ):
        from_gptq(tensors | {"qweight": tensors["qweight"].long()}, 4, 16)
    for dtype in (torch.int32, torch.int64, torch.float8_e4m3fn, torch.float64):
        with pytest.raises(ModelError, match=r"scales of .* in float16 or bfloat16 or float32"):
            from_gptq(tensors | {"scales": tensors["scales"].to(dtype)}, 4, 16)
    with pytest.raises(ConfigError, match="no codes of 6 bits"):
        from_gptq(tensors, 6, 16)
    zeros = torch.full_like(tensors["qzeros"], -1)
    with pytest.raises(ModelError, match="stored as 15 .* some programs mean 0 by it, some 16"):
        from_gptq(tensors | {"qzeros": zeros}, 4, 16)
    assert (from_gptq(tensors | {"qzeros": zeros}, 4, 16, "gptq_v2").unpacked()[2] == 15).all()


def test_scales_in_bfloat16_become_float32():
    tensors = to_gptq(uniform(4, (8, 32), 2))
    read = from_gptq(tensors | {"scales": tensors["scales"].bfloat16()}, 4, 16)
    assert read.scale.dtype == torch.float32 and torch.equal(
        read.scale, tensors["scales"].bfloat16().float().T
    )


@pytest.mark.parametrize(("packing", "kind"), AUTO_ROUND.items())
def test_auto_rounds_own_layout_has_the_zero_points_that_it_says(packing, kind, tmp_path):
    weight = uniform(3, (32, 64), 4, least_zero=1 if kind == "gptq" else 0)
    tensors = {f"layer.{part}": tensor for part, tensor in to_gptq(weight, kind).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    entry = {"quant_method": "auto-round", "packing_format": packing, "bits": 3, "group_size": 16}
    same(read_foreign(entry, Shards(tmp_path))["layer"], weight)
    for other in ("auto_round:fp8", [packing], {packing: 1}, None):
        entry["packing_format"] = other
        with pytest.raises(ModelError, match=r"packing_format .* of auto-round cannot be read"):
            read_foreign(entry, Shards(tmp_path))
