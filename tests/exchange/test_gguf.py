"""GGUF blocks say bit for bit what the weight says, to gguf's dequantizer and by definition."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.errors import ConfigError
from qbench.exchange.gguf import blocks
from qbench.formats import Uniform
from qbench.kernels.samples import random_uniform
from samples import seeded

Q4_0, Q5_0, Q8_0 = GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q8_0


def uniform(bits, shape, groups, seed=0, zero=None):
    """A weight with signed scales; zero: (low, high) of integer zero points, None if symmetric."""
    generator = seeded(seed)
    codes = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
    scale = torch.randn((shape[0], groups), generator=generator).half()
    if zero is not None:
        zero = torch.randint(*zero, (shape[0], groups), generator=generator, dtype=torch.uint8)
    return Uniform.from_codes(codes, scale, zero, bits)


def dequantize(data, kind):
    """The definition, one number at a time."""
    size = {Q4_0: 18, Q5_0: 22, Q8_0: 34}[kind]
    rows = []
    for row in data:
        line = []
        for block in row.reshape(-1, size):
            (scale,) = struct.unpack("<e", block[:2].tobytes())
            if kind == Q8_0:
                integers = struct.unpack("32b", block[2:].tobytes())
            else:
                halves = block[-16:]
                integers = [halves[j % 16] >> (4 * (j // 16)) & 15 for j in range(32)]
                if kind == Q5_0:
                    (fifth,) = struct.unpack("<I", block[2:6].tobytes())
                    integers = [
                        integer | (fifth >> j & 1) << 4 for j, integer in enumerate(integers)
                    ]
                integers = [int(integer) - (8 if kind == Q4_0 else 16) for integer in integers]
            line += [np.float32(scale) * np.float32(integer) for integer in integers]
        rows.append(line)
    return np.array(rows, dtype=np.float32)


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(1, 8),
    out=st.integers(1, 20),
    blocks_per_group=st.integers(1, 3),
    groups=st.integers(1, 3),
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
)
def test_blocks_are_the_weight_bit_for_bit(bits, out, blocks_per_group, groups, symmetric, seed):
    middle = (2 ** (bits - 1), 2 ** (bits - 1) + 1)
    zero = None if symmetric else (0, 2**bits) if bits < 8 else middle
    weight = uniform(bits, (out, 32 * blocks_per_group * groups), groups, seed, zero)
    kind, data = blocks(weight)
    expected = weight.dequantize().numpy()
    read = quants.dequantize(data, kind)
    assert read.shape == expected.shape and np.array_equal(
        read.view(np.int32), expected.view(np.int32)
    )


@pytest.mark.parametrize("bits, kind", [(4, Q4_0), (5, Q5_0), (8, Q8_0)])
def test_the_layout_is_the_definition(bits, kind):
    weight = uniform(bits, (3, 96), 3)
    found, data = blocks(weight)
    assert found == kind and data.dtype == np.uint8
    assert np.array_equal(dequantize(data, kind), weight.dequantize().numpy())


@pytest.mark.parametrize(
    "low, high, kind",
    [
        (-8, 7, Q4_0),
        (-8, 8, Q5_0),
        (-9, 7, Q5_0),
        (-16, 15, Q5_0),
        (-16, 16, Q8_0),
        (-17, 15, Q8_0),
        (-128, 127, Q8_0),
    ],
)
def test_the_smallest_type_that_holds_all_integers_is_taken(low, high, kind):
    codes = torch.zeros(2, 32, dtype=torch.uint8)
    codes[0, 0], codes[1, 31] = 0, high - low
    zero = torch.full((2, 1), -low, dtype=torch.uint8)
    weight = Uniform.from_codes(codes, torch.ones(2, 1).half(), zero, 8)
    found, data = blocks(weight)
    assert found == kind and np.array_equal(
        quants.dequantize(data, kind), weight.dequantize().numpy()
    )


@pytest.mark.parametrize(
    "bits, kind", [(2, Q4_0), (3, Q4_0), (4, Q5_0), (5, Q8_0), (6, Q8_0), (7, Q8_0)]
)
def test_any_integer_zero_point_finds_a_type_up_to_seven_bits(bits, kind):
    assert blocks(uniform(bits, (64, 64), 2, zero=(0, 2**bits)))[0] == kind


def test_scales_as_integers_are_half_precision_in_a_block():
    weight = random_uniform((8, 512), 4, 32, scale_bits=6)
    assert "scale_codes" in weight.to_tensors()
    kind, data = blocks(weight)
    assert np.array_equal(quants.dequantize(data, kind), weight.dequantize().numpy())


def test_what_no_type_holds_is_refused():
    with pytest.raises(
        ConfigError, match=r"group_size=16 is not a multiple of 32, the block of GGUF's types"
    ):
        blocks(uniform(4, (4, 64), 4))
    with pytest.raises(ConfigError, match="group_size=48 is not a multiple of 32"):
        blocks(uniform(4, (4, 48), 1))
    with pytest.raises(
        ConfigError, match=r"code - zero point reaches 0\.\.255, .* Q8_0, holds -128\.\.127"
    ):
        blocks(uniform(8, (64, 64), 1, zero=(0, 1)))
    weight = uniform(4, (4, 64), 2, zero=(0, 16))
    scale = weight.scale.float()
    scale[1, 1] = 0.1
    with pytest.raises(
        ConfigError,
        match=r"the scale 0\.100000001 \(output 1, group 1\) .* GGUF stores scales in float16",
    ):
        blocks(dataclasses.replace(weight, stored_scale=scale))
    zero = weight.unpacked()[2] + 0.5
    with pytest.raises(
        ConfigError, match=r"the zero point .* \(output 0, group 0\) is not an integer of 32 bits"
    ):
        blocks(dataclasses.replace(weight, stored_zero=zero))
