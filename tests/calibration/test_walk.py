"""The walk visits every layer of any decoder with the statistics of truly sequential inputs."""

from __future__ import annotations

import copy

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.errors import MethodError, ModelError
from qbench.models.blocks import decoder_blocks, quantizable, read_weight, write_weight
from qbench.models.experts import unfuse_experts
from samples import token_ids
from walks import visit_layers

TOKENS = token_ids()


@pytest.fixture
def model(family):
    model = family()
    unfuse_experts(model)
    return model


def by_forward_passes(model, change):
    """The plain reference: one pass over the whole model for every layer, in their order."""
    order = []
    layers = quantizable(model)
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, layer in layers.items()
    ]
    model(TOKENS)
    for hook in hooks:
        hook.remove()
    found = {}
    for name in order:
        inputs = []
        hook = layers[name].register_forward_pre_hook(
            lambda _, args, inputs=inputs: inputs.append(args[0])
        )
        model(TOKENS)
        hook.remove()
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
        found[name] = 2 / len(rows) * rows.T @ rows, len(rows)
        change(layers[name])
    return found


@torch.no_grad()
def test_statistics_are_those_of_the_quantized_prefix(model):
    def halve(layer):
        write_weight(layer, (read_weight(layer) * 2).round() / 2)

    expected = by_forward_passes(copy.deepcopy(model), halve)
    visited = {}

    def visit(name, layer, stats):
        visited[name] = stats.hessian.double(), stats.count
        halve(layer)

    visit_layers(model, TOKENS, visit)
    assert list(visited) == list(expected)
    for name, (hessian, count) in expected.items():
        torch.testing.assert_close(
            visited[name][0], hessian, rtol=2e-3, atol=2e-4 * hessian.abs().max().item()
        )
        assert visited[name][1] == count


def test_the_model_is_whole_after_the_walk(model):
    before = model(TOKENS).logits
    visit_layers(model, TOKENS, lambda name, layer, stats: None)
    assert torch.equal(model(TOKENS).logits, before)


def test_the_batch_size_changes_nothing_but_rounding(tiny):
    found = []
    for batch_size in (1, 5):
        model = tiny()
        qbench.quantize(model, "gptq", Scheme(3, 16), TOKENS, batch_size=batch_size)
        found.append(model(TOKENS).logits)
    assert (found[0] - found[1]).abs().mean() < 0.1 * found[0].std()


def test_a_layer_that_no_token_reaches_is_visited_with_count_zero(tiny):
    model = tiny()
    mlp = model.model.layers[1].mlp
    mlp.expert = torch.nn.Linear(32, 32)
    counts = {}
    visit_layers(model, TOKENS, lambda name, layer, stats: counts.update({name: stats.count}))
    assert counts.pop("model.layers.1.mlp.expert") == 0
    assert set(counts.values()) == {TOKENS.numel()}


def test_inputs_that_are_not_finite_name_the_layer(tiny):
    model = tiny()
    model.model.layers[1].input_layernorm.weight.data[0] = float("inf")
    with pytest.raises(
        MethodError, match="the inputs of model.layers.1.self_attn.q_proj are not finite"
    ):
        visit_layers(model, TOKENS, lambda name, layer, stats: None)


def test_a_failing_visit_leaves_no_hooks(tiny):
    model = tiny()

    def fail(name, layer, stats):
        raise MethodError("no")

    with pytest.raises(MethodError):
        visit_layers(model, TOKENS, fail)
    assert not any(layer._forward_pre_hooks for layer in quantizable(model).values())
    assert model(TOKENS).logits.shape == (5, 16, 259)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ModelError, match="Linear has no list of blocks with linear layers"):
        decoder_blocks(torch.nn.Linear(2, 2))
