"""AWQ's GEMM layout, written by its definition and read back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.errors import ConfigError, ModelError
from qbench.exchange.awq import from_awq
from qbench.formats.packing import unpack
from samples import integers, scales

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def words(values):
    """(n, out) codes -> (n, out/8) int32, by definition: nibble i is output ORDER[i] of eight."""
    lines = []
    for row in values.tolist():
        line = []
        for start in range(0, len(row), 8):
            word = sum(row[start + output] << (4 * i) for i, output in enumerate(ORDER))
            line.append(word - 2**32 if word >= 2**31 else word)
        lines.append(line)
    return torch.tensor(lines, dtype=torch.int32)


def layer(out, inputs, groups, seed=0):
    """codes (in, out), zero points (groups, out), and the tensors of a checkpoint."""
    codes = integers((inputs, out), 0, 16, seed)
    zero = integers((groups, out), 0, 16, seed + 1)
    scale = scales((groups, out), seed).half()
    return codes, zero, {"qweight": words(codes), "qzeros": words(zero), "scales": scale}


@settings(deadline=None, max_examples=60)
@given(
    out=st.integers(1, 6),
    group=st.integers(1, 20),
    groups=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_what_the_definition_packs_is_read_exactly(out, group, groups, seed):
    codes, zero, tensors = layer(8 * out, group * groups, groups, seed)
    weight = from_awq(tensors, 4, group if groups > 1 else -1)
    assert weight.shape == (8 * out, group * groups) and weight.group_size == group
    assert torch.equal(weight.unpacked()[0].flatten(1), codes.T)
    assert torch.equal(unpack(weight.zero_point, 4, groups), zero.T)
    assert torch.equal(weight.scale, tensors["scales"].T) and weight.scale.dtype == torch.float16
    wide = tensors["scales"].double().repeat_interleave(group, 0)  # (in, out)
    expected = (codes.double() - zero.double().repeat_interleave(group, 0)) * wide
    torch.testing.assert_close(weight.dequantize().double(), expected.T, rtol=1e-6, atol=0)


def test_a_word_holds_its_outputs_in_the_published_order():
    word = torch.tensor(
        [[0x75316420]], dtype=torch.int32
    )  # nibbles from the lowest: 0 2 4 6 1 3 5 7
    tensors = {"qweight": word, "qzeros": torch.zeros_like(word), "scales": torch.ones(1, 8).half()}
    assert from_awq(tensors, 4, -1).dequantize().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_other_layouts_are_refused():
    _, _, tensors = layer(16, 32, 2)
    with pytest.raises(ConfigError, match="no codes of 3 bits; allowed is 4"):
        from_awq(tensors, 3, 16)
    with pytest.raises(ModelError, match="an AWQ layer lacks qzeros, scales"):
        from_awq({"qweight": tensors["qweight"]}, 4, 16)
    with pytest.raises(ModelError, match="group_size=128 does not divide the 32 inputs"):
        from_awq(tensors)
    gemv = {
        "qweight": torch.zeros(16, 4, dtype=torch.int32),
        "qzeros": tensors["qzeros"],
        "scales": tensors["scales"].T,
    }
    with pytest.raises(
        ModelError,
        match=r"qzeros of an AWQ layer has shape \(2, 2\) .* check group_size and version",
    ):
        from_awq(gemv, 4, 16)
    with pytest.raises(ModelError, match=r"qweight of an AWQ layer .* torch.int16; .* in int32"):
        from_awq(tensors | {"qweight": tensors["qweight"].to(torch.int16)}, 4, 16)
