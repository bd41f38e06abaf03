"""What ranks hold is what the whole weight holds there, in every way of storing scales."""

from __future__ import annotations

import pytest
import torch

from qbench.checkpoint.config import QuantizationConfig, quantization_entry, stored_tensors
from qbench.errors import ConfigError
from qbench.formats import Binary, Dense, Uniform
from qbench.formats.rotated_binary import RotatedBinary
from qbench.formats.snapping import stored_coding, stored_scale, stored_zero_points
from qbench.serving.fused import fused, served_layers, widened
from qbench.serving.shards import axes_of, cut, empty_weight, inputs_of, local_weight
from samples import binary_weight, integers, lattice_weight, normal, scales, uniform_weight


def stepped_binary(out, inputs, bits, group_size, scale_bits=6):
    groups = inputs // group_size
    alpha = scales((out, groups, 1)) * 2.0 ** -torch.arange(bits)
    shift = 0.1 * normal(out, groups)
    planes = integers((bits, out, inputs), 0, 2)
    return Binary.from_planes(planes, *stored_coding(alpha, shift, scale_bits))


def stepped_uniform(out, inputs, bits, group_size, scale_bits=5):
    groups = inputs // group_size
    zero = normal(out, groups) + 2.0 ** (bits - 1)
    codes = integers((out, inputs), 0, 2**bits)
    scale = scales((out, groups))
    zero_point = stored_zero_points(zero, scale, bits, scale_bits)
    return Uniform.from_codes(codes, stored_scale(scale, scale_bits), zero_point, bits)


WEIGHTS = {
    "binary": lambda bits, group: binary_weight(6, 96, bits, group),
    "binary without shift": lambda bits, group: binary_weight(6, 96, bits, group, shift=False),
    "binary, scales as integers": lambda bits, group: stepped_binary(6, 96, bits, group),
    "uniform": lambda bits, group: uniform_weight(6, 96, bits, group),
    "uniform, real zeros": lambda bits, group: uniform_weight(6, 96, bits, group, "real"),
    "uniform, symmetric": lambda bits, group: uniform_weight(6, 96, bits, group, "middle"),
    "uniform, scales as integers": lambda bits, group: stepped_uniform(6, 96, bits, group),
}


def at_rank(weight, rank, ranks):
    """What the loaders copy into the parameters of a rank that has some of the inputs."""
    inputs = inputs_of("layer", weight.shape[1], weight.group_size, rank, ranks)
    tensors = empty_weight(weight, weight.shape[0], inputs)
    axes = axes_of(weight)
    for name, part in weight.to_tensors().items():
        tensors[name].copy_(cut(part, axes[name], inputs))
    return local_weight(weight, tensors, inputs)


@pytest.mark.parametrize(
    ("group_size", "ranks"),
    [(8, 1), (8, 2), (8, 3), (8, 4), (24, 2), (24, 4), (96, 2), (96, 3), (96, 4)],
)
@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_ranks_have_their_inputs(kind, bits, group_size, ranks):
    """Rows are one group for all ranks, or have whole groups in each, also between bytes."""
    weight = WEIGHTS[kind](bits, group_size)
    parts = [at_rank(weight, rank, ranks).dequantize() for rank in range(ranks)]
    assert torch.equal(torch.cat(parts, 1), weight.dequantize())


@pytest.mark.parametrize("kind", WEIGHTS)
def test_rows_of_every_part_are_outputs(kind):
    weight = WEIGHTS[kind](3, 24)
    inputs = inputs_of("layer", 96, 24, 0, 1)
    tensors = {}
    for name, part in weight.to_tensors().items():
        tensors[name] = part.narrow(axes_of(weight)[name].outputs, 2, 3)
    assert torch.equal(local_weight(weight, tensors, inputs).dequantize(), weight.dequantize()[2:5])


def test_a_rank_takes_no_more_than_its_share():
    weight = stepped_binary(6, 96, 3, 8)
    whole = sum(part.nbytes for part in weight.to_tensors().values())
    half = sum(part.nbytes for part in at_rank(weight, 0, 2).to_tensors().values())
    spans = 2 * weight.shape[0]  # bytes of one number a row, which both ranks have
    assert half <= (whole - spans) / 2 + spans + weight.shape[0]


def test_ranks_that_would_share_a_group_in_part_are_refused():
    with pytest.raises(ConfigError, match="96 inputs in groups of 32, which 2 ranks cannot share"):
        inputs_of("down_proj", 96, 32, 0, 2)


# Layers that are computed as one


def groups(**weights):
    """The entries of a config for these weights, by their names."""
    entry = quantization_entry(weights, [], {})
    return QuantizationConfig.model_validate(entry).modules()


def stacked(members, whole):
    """The loaders' work: the rows of all members one below the other, in the dtype of all."""
    parts = {}
    for name, part in whole.to_tensors().items():
        rows = []
        for member in members.values():
            rows.append(widened(stored_tensors(member)[name], part.dtype, whole.spec()))
        parts[name] = torch.cat(rows, axes_of(whole)[name].outputs)
    inputs = inputs_of("layer", whole.shape[1], whole.spec()["group_size"], 0, 1)
    return local_weight(whole, parts, inputs).dequantize()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_fused_layers_are_all_of_them(kind):
    members = {"q": WEIGHTS[kind](3, 24), "k": WEIGHTS[kind](3, 24)}
    expected = torch.cat([weight.dequantize() for weight in members.values()])
    assert torch.equal(stacked(members, fused("qkv", groups(**members))), expected)


@pytest.mark.parametrize(
    "members",
    [
        {
            "q": binary_weight(6, 96, 3, 24),
            "k": binary_weight(2, 96, 3, 24, dtype=torch.float32),
        },
        {"q": uniform_weight(6, 96, 3, 24), "k": uniform_weight(2, 96, 3, 24, "real")},
        {
            "q": uniform_weight(6, 96, 3, 24, "real", dtype=torch.float32),
            "k": uniform_weight(2, 96, 3, 24),
        },
    ],
    ids=["halves and singles", "integers and reals", "singles and integers"],
)
def test_numbers_of_fused_layers_may_differ_in_their_precision(members):
    expected = torch.cat([weight.dequantize() for weight in members.values()])
    assert torch.equal(stacked(members, fused("qkv", groups(**members))), expected)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (binary_weight(6, 96, 2, 24), "must share the bits: q 3, k 2"),
        (binary_weight(6, 96, 3, 48), "must share the group size: q 24, k 48"),
        (uniform_weight(6, 96, 3, 24), "must share the format: q binary, k uniform"),
        (binary_weight(6, 96, 3, 24, shift=False), "must share the settings"),
        (stepped_binary(6, 96, 3, 24), "must share the settings"),
    ],
    ids=["bits", "groups", "format", "shift", "integers"],
)
def test_fused_layers_that_differ_are_refused_in_a_sentence(other, reason):
    members = groups(q=binary_weight(6, 96, 3, 24), k=other)
    with pytest.raises(ConfigError, match=reason):
        fused("qkv", members)


def test_fused_layers_of_which_one_is_not_quantized_are_refused():
    members = {**groups(q=binary_weight(6, 96, 3, 24)), "k": None}
    with pytest.raises(ConfigError, match="q is quantized and k is not"):
        fused("qkv", members)


@pytest.mark.parametrize(
    "weight",
    [
        lattice_weight(4, 32, 2),
        RotatedBinary.from_coding(binary_weight(4, 32, 3, 16), normal(32)),
    ],
    ids=["lattice", "rotated-binary"],
)
def test_formats_without_products_in_a_server_are_refused(weight):
    entry = quantization_entry({"a.q": weight}, [], {})
    reason = rf"a\.q is stored as '{weight.format}'.*serves only binary and uniform"
    with pytest.raises(ConfigError, match=reason):
        served_layers(QuantizationConfig.model_validate(entry))


def test_a_layer_left_dense_is_no_quantized_one():
    weights = {"a.q": Dense(normal(4, 32)), "a.k": uniform_weight(4, 32, 3, 16)}
    layout = QuantizationConfig.model_validate(quantization_entry(weights, [], {}))
    assert served_layers(layout).keys() == {"a.k"}
