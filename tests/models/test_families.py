"""Every method on every family of decoders, and what transformers hands to their blocks."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.calibration.walk import enter
from qbench.checkpoint.folder import is_checkpoint
from qbench.contracts import BlockInputs
from qbench.models.blocks import decoder_blocks, quantizable, read_weight
from qbench.models.experts import unfuse_experts
from qbench.registry import methods
from samples import token_ids

TOKENS = token_ids(6)
SMALL = {"epochs": 1, "batch_size": 2, "grid": 2, "rounds": 3, "sweeps": 1, "scale": 0.8}
METHODS = [name for name, found in methods().items() if isinstance(found, type) and name != "none"]


def quick(name):
    """The method at its smallest, with bits that it supports."""
    cls = methods()[name]
    fields = {field.name for field in dataclasses.fields(cls)}
    low, high = cls.bits
    return cls(**{key: value for key, value in SMALL.items() if key in fields}), Scheme(
        min(max(3, low), high), 16
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_quantizes_every_family(family, name):
    model = family()
    result = qbench.quantize(model, *quick(name), TOKENS, batch_size=2)
    layers = quantizable(model)
    assert set(result.weights) == set(layers)
    for layer, weight in result.weights.items():
        assert torch.equal(read_weight(layers[layer]), weight.dequantize())
    assert torch.isfinite(model(TOKENS).logits).all()


@torch.no_grad()
def test_a_saved_model_is_the_same_model(family, tmp_path):
    model = family()
    result = qbench.quantize(model, *quick("rtn"))
    loaded = qbench.load(result.save(tmp_path / "saved"))
    assert loaded.bits_per_weight == result.bits_per_weight
    assert is_checkpoint(tmp_path / "saved") and set(loaded.weights) == set(result.weights)
    torch.testing.assert_close(
        loaded.model(TOKENS).logits, model(TOKENS).logits, rtol=1e-5, atol=1e-5
    )


def test_blocks_take_their_recorded_arguments_and_replaced_parameters(family):
    """The engine calls a block as the model does, with its parameters or others in their place."""
    model = family()
    unfuse_experts(model)
    _, blocks = decoder_blocks(model)
    outputs = []
    hooks = [block.register_forward_hook(lambda *args: outputs.append(args[2])) for block in blocks]
    model(TOKENS, use_cache=False)
    for hook in hooks:
        hook.remove()
    (stream,) = enter(model, blocks, TOKENS, len(TOKENS), torch.device("cpu"))
    hidden = stream.hidden
    for block, expected, arguments in zip(blocks, outputs, stream.arguments, strict=True):
        inputs = BlockInputs([hidden], [hidden], [arguments])
        values = {name: value.detach().clone() for name, value in block.named_parameters()}
        plain = inputs.run(block, hidden, 0)
        assert torch.equal(plain, expected[0] if isinstance(expected, tuple) else expected)
        assert torch.equal(inputs.run(block, hidden, 0, values), plain)
        changed = {name: (value * 1.5).requires_grad_() for name, value in values.items()}
        other = inputs.run(block, hidden, 0, changed)
        other.square().mean().backward()
        assert not torch.allclose(other, plain) and torch.equal(inputs.run(block, hidden, 0), plain)
        assert all(changed[name].grad is not None for name in changed)
        hidden = plain.detach()
