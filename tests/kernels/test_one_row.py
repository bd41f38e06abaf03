"""The kernels between the products of one token, run on the CPU, against plain torch."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import functions_on_cpu, needs_compiler
from qbench.errors import ConfigError
from qbench.kernels.gpu.cuda import bit_serial, one_row
from qbench.kernels.gpu.cuda.layout import derive, joined
from qbench.kernels.gpu.cuda.one_row import OneRow
from qbench.kernels.gpu.cuda.plain_row import PlainRow
from samples import binary_weight, normal, uniform_weight

pytestmark = needs_compiler

KERNELS = OneRow()
PLAIN = PlainRow()
DTYPES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def on_cpu(tmp_path_factory):
    """Kernels run on the CPU."""
    with functions_on_cpu(
        tmp_path_factory, (bit_serial, one_row), (bit_serial._bit_planes, one_row._functions)
    ):
        yield


def assert_close(y, expected, steps=1.0):
    """Equal up to single roundings to their dtype, and most numbers equal."""
    assert y.dtype == expected.dtype and y.shape == expected.shape
    epsilon = torch.finfo(y.dtype).eps
    torch.testing.assert_close(y, expected, rtol=steps * epsilon, atol=steps * epsilon / 16)
    assert (y == expected).double().mean() > 0.8


def assert_prepared(prepared, y):
    """Planes of bits are those that `prepare` makes of the same row; what pads may have scale 0."""
    planes = derive(binary_weight(16, y.shape[1], 1, y.shape[1]))
    expected = bit_serial.prepare(y, planes)
    assert torch.equal(prepared.planes, expected.planes)
    expected.blocks[expected.blocks.abs() < 1e-15] = 0
    prepared.blocks[prepared.blocks.abs() < 1e-15] = 0
    assert torch.equal(prepared.blocks, expected.blocks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [32, 328, 2312])
def test_a_sum_and_its_norm(length, dtype):
    x, update = normal(1, length, seed=1).to(dtype), normal(1, length, seed=2).to(dtype)
    weight = (1 + 0.1 * normal(length, seed=3)).to(dtype)
    for change in (update, None):
        total, y = KERNELS.norm(x, change, weight, 1e-5)
        expected_total, expected = PLAIN.norm(x, change, weight, 1e-5)
        assert torch.equal(total, expected_total)
        assert_close(y, expected)
        _, prepared = KERNELS.norm(x, change, weight, 1e-5, planes=True)
        assert_prepared(prepared, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [32, 600])
def test_a_gate(length, dtype):
    both = (3 * normal(1, 2 * length)).to(dtype)
    y = KERNELS.gated(both)
    assert_close(y, PLAIN.gated(both), 2)
    assert_prepared(KERNELS.gated(both, planes=True), y)


SHAPES = [  # heads, key heads, numbers of a head, places, the token's place
    (2, 2, 8, 32, 0),
    (4, 2, 16, 400, 333),
    (3, 1, 128, 48, 47),
    (4, 1, 64, 16, 9),
    (1, 1, 256, 20, 13),
]


def attention_inputs(shape, dtype):
    """qkv, the rotary tables, and a cache that is full of what must not be seen from `place` on."""
    heads, key_heads, size, room, place = shape
    qkv = normal(1, (heads + 2 * key_heads) * size, seed=1).to(dtype)
    angles = 6 * normal(room, size // 2, seed=2).repeat(1, 2)
    rotary = angles.cos().to(dtype), angles.sin().to(dtype)
    keys, values = normal(2, 1, key_heads, room, size, seed=3).to(dtype).unbind(0)
    keys[:, :, place:] = torch.nan
    values[:, :, place:] = torch.nan
    return qkv, rotary, (keys, values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_of_one_token(shape, dtype):
    _, _, size, _, place = shape
    qkv, rotary, cache = attention_inputs(shape, dtype)
    plain_cache = tuple(tensor.nan_to_num() for tensor in cache)  # 0 times NaN is NaN in torch
    count, scale = torch.tensor([2]), size**-0.5
    expected = PLAIN.attention(qkv, rotary, plain_cache, count, place - 2, scale)
    y = KERNELS.attention(qkv, rotary, cache, count, place - 2, scale)
    assert_close(y, expected, 2)
    for ours, theirs in zip(cache, plain_cache, strict=True):
        assert torch.equal(ours[:, :, : place + 1], theirs[:, :, : place + 1])
        assert ours[:, :, place + 1 :].isnan().all()
    again = KERNELS.attention(qkv, rotary, cache, count, place - 2, scale, planes=True)
    if size == one_row.BLOCK:
        assert_prepared(again, y)
    else:
        assert torch.equal(again, y)


def test_attention_that_is_not_served_is_refused():
    qkv, rotary, cache = attention_inputs((2, 1, 24, 16, 3), torch.float16)
    with pytest.raises(ConfigError, match="not served for heads of 24 and 16 places; heads of 8"):
        KERNELS.attention(qkv, rotary, cache, torch.tensor([3]), 0, 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [7, 1030, 20003])
def test_the_first_of_the_largest_is_kept(length, dtype):
    logits = normal(1, length).to(dtype)
    for places in ([length - 1], [5, length - 1], [length // 2, length - 2], [0, 3]):
        row = logits.clone()
        row[0, places] = 9
        outcomes = []
        for kernels in (KERNELS, PLAIN):
            token, written = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 4), -1)
            count = torch.tensor([2])
            kernels.keep_largest(row, token, written, count)
            outcomes.append((token.tolist(), written.tolist(), count.tolist()))
        assert outcomes[0] == outcomes[1] == ([[places[0]]], [[-1, -1, places[0], -1]], [3])


@pytest.mark.parametrize("make", [binary_weight, uniform_weight])
def test_joined_weights_give_the_products_of_each(make):
    weights = [make(out, 512, 3, 128, seed=out) for out in (48, 16, 40)]
    parts = [derive(weight) for weight in weights]
    together = joined(parts)
    assert together.shape == (104, 512)
    x = normal(1, 512).bfloat16()
    prepared = bit_serial.prepare(x, together)
    ys = []
    for planes in (together, *parts):
        y = x.new_empty(1, planes.shape[0])
        bit_serial.launch(prepared, planes, None, y, bit_serial.Config(2, 1, 2))
        ys.append(y)
    assert torch.equal(ys[0], torch.cat(ys[1:], 1))


def test_weights_that_differ_are_not_joined():
    first = derive(binary_weight(32, 512, 3, 128))
    for out, columns, bits, group, shift in (
        (32, 256, 3, 128, True),
        (32, 512, 2, 128, True),
        (32, 512, 3, 64, True),
        (32, 512, 3, 128, False),
    ):
        assert joined([first, derive(binary_weight(out, columns, bits, group, shift))]) is None
    assert joined([first, derive(uniform_weight(32, 512, 3, 128))]) is None
    assert joined([derive(binary_weight(24, 512, 3, 128)), first]) is None
    assert joined([first, derive(binary_weight(24, 512, 3, 128))]).shape == (56, 512)
