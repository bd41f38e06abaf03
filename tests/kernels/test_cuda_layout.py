"""The layout of the CUDA kernels: against its definition bit by bit, and back to the weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_planes import dense
from qbench.errors import ConfigError
from qbench.formats import Binary, Dense, Uniform
from qbench.formats.packing import unpack
from qbench.kernels.gpu.cuda.layout import CHUNK, TILE, derive, not_served
from samples import binary_weight, uniform_weight

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 24))  # out, in/32
GROUPS = (32, 64, 128, 256, 384)


def group_sizes(columns):
    return [size for size in GROUPS if columns % size == 0] + [columns]


def the_bit(planes, plane, output, column):
    """By the definition of the layout, number by number."""
    tile, row = divmod(output, TILE)
    chunk, place = divmod(column, CHUNK)
    half, place = divmod(place, 128)
    step, place = divmod(place, 16)
    t, j = divmod(place, 4)
    lane = 4 * (row % 8) + t
    word = planes.words[tile, chunk, plane, lane, 2 * half + row // 8].item()
    return (word >> (step + 8 * j)) & 1


def the_params(planes, output, column):
    tile, row = divmod(output, TILE)
    group = column // planes.group_size if planes.group_size else 0
    return planes.params[tile, group, row % 8, :, row // 8]


@pytest.mark.parametrize("columns, group_size", [(96, 32), (288, 288), (512, 128), (1152, 384)])
def test_words_and_params_lie_where_the_definition_says(columns, group_size):
    weight = binary_weight(19, columns, 3, group_size)
    planes = derive(weight)
    bits = [unpack(plane, 1, columns) for plane in weight.planes]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        plane, output, column = (
            int(torch.randint(limit, (1,), generator=generator)) for limit in (3, 19, columns)
        )
        assert the_bit(planes, plane, output, column) == bits[plane][output, column]
        group = column // group_size
        stored = [*weight.alpha[output, group], weight.shift[output, group]]
        assert the_params(planes, output, column).tolist() == [value.item() for value in stored]


def test_plane_p_of_a_uniform_weight_is_the_bit_of_place_value_two_to_the_p():
    weight = uniform_weight(5, 64, 5, 32)
    codes = weight.unpacked()[0].flatten(1)
    planes = derive(weight)
    for output, column in ((0, 0), (1, 33), (4, 63), (3, 17)):
        bits = [the_bit(planes, plane, output, column) for plane in range(5)]
        assert sum(bit << plane for plane, bit in enumerate(bits)) == codes[output, column]


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 8), st.booleans(), st.data())
def test_a_binary_weight_comes_back(shape, bits, shift, data):
    out, columns = shape[0], 32 * shape[1]
    weight = binary_weight(
        out, columns, bits, data.draw(st.sampled_from(group_sizes(columns))), shift, seed=out
    )
    planes = derive(weight)
    assert planes.shape == weight.shape and planes.bits == bits and not planes.uniform
    assert planes.params.shape[3] == bits + shift and planes.shift == shift
    exact = weight.alpha.double().repeat_interleave(weight.group_size, 1)
    signs = torch.stack([weight.signs(p).flatten(1) for p in range(bits)], 2).double()
    expected = (exact * signs).sum(2)
    if shift:
        expected += weight.shift.double().repeat_interleave(weight.group_size, 1)
    torch.testing.assert_close(dense(planes), expected, rtol=1e-13, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 8), st.sampled_from(["integer", "real", "middle"]), st.data())
def test_a_uniform_weight_comes_back(shape, bits, zero, data):
    out, columns = shape[0], 32 * shape[1]
    weight = uniform_weight(
        out, columns, bits, data.draw(st.sampled_from(group_sizes(columns))), zero, seed=out
    )
    planes = derive(weight)
    assert planes.params.shape[3] == 2 and planes.uniform and not planes.shift
    codes, scale, point = (part.double() for part in weight.unpacked())
    expected = (scale[..., None] * (codes - point[..., None])).flatten(1)
    assert torch.equal(dense(planes), expected)


@pytest.mark.parametrize("columns", [1, 36, 100, 255])
def test_any_number_of_inputs_with_one_group_a_channel(columns):
    weight = uniform_weight(3, columns, 3, columns)
    planes = derive(weight)
    assert planes.group_size == 0 and planes.groups == 1
    assert torch.equal(dense(planes).float(), weight.dequantize())


def test_what_pads_is_zero():
    planes = derive(binary_weight(17, 288, 2, 32))
    assert planes.words.shape == (2, 2, 2, 32, 4) and planes.params.shape == (2, 16, 8, 3, 2)
    for column in (288, 300, 511):
        assert the_bit(planes, 0, 0, column) == 0
    assert planes.params[:, 9:].count_nonzero() == 0
    assert planes.params[1, :, 1:].count_nonzero() == 0, "outputs 17..23"
    assert planes.params[1, :, :, :, 1].count_nonzero() == 0, "outputs 24..31"
    assert planes.words[1].view(2, 2, 8, 4, 4)[:, :, 1:].count_nonzero() == 0


def test_parameters_keep_their_numbers_and_their_dtype():
    halves = derive(binary_weight(16, 64, 2, 32))
    assert halves.params.dtype == torch.float16 and not halves.meta32
    singles = derive(binary_weight(16, 64, 2, 32, dtype=torch.float32))
    assert singles.meta32
    for zero, dtype in (("integer", torch.float16), ("middle", torch.float16)):
        assert derive(uniform_weight(16, 64, 4, 32, zero)).params.dtype == dtype
    codes = torch.zeros(16, 64, dtype=torch.uint8)
    scale = torch.ones(16, 2).half()
    exact = Uniform.from_codes(codes, scale, torch.full((16, 2), 3.25), 4)
    assert derive(exact).params.dtype == torch.float16, "float32 zero points that float16 holds"
    inexact = Uniform.from_codes(codes, scale, torch.full((16, 2), 1 / 3), 4)
    planes = derive(inexact)
    assert planes.params.dtype == torch.float32
    assert torch.equal(dense(planes).float(), inexact.dequantize())


def test_bytes_that_a_product_reads():
    weight = binary_weight(64, 512, 3, 128)
    assert derive(weight).nbytes == sum(part.nbytes for part in weight.to_tensors().values())


def test_macros_say_what_the_tensors_mean():
    planes = derive(binary_weight(16, 64, 3, 32, shift=False, dtype=torch.float32))
    assert planes.macros(torch.bfloat16) == {
        "PLANES": 3, "UNIFORM": 0, "SHIFT": 0, "GROUP": 32, "META32": 1, "BF16": 1,
    }  # fmt: skip
    planes = derive(uniform_weight(16, 64, 4, 64))
    assert planes.macros(torch.float16) == {
        "PLANES": 4, "UNIFORM": 1, "SHIFT": 0, "GROUP": 0, "META32": 0, "BF16": 0,
    }  # fmt: skip


def test_weights_that_are_not_served():
    with pytest.raises(ConfigError, match="no CUDA kernels for the format 'dense'; multiply with"):
        derive(Dense(torch.ones(2, 32)))
    weight = Binary.from_planes(torch.ones(2, 4, 96), torch.ones(4, 2, 2).half(), None)
    with pytest.raises(ConfigError, match="groups of 48 are neither 32, 64, a multiple of 128"):
        derive(weight)
    assert not_served(96, 96) is None and not_served(1152, 384) is None
