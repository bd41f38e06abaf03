"""What an error of a layer costs the logits, against the divergence that it causes."""

from __future__ import annotations

import pytest
import torch

from families import FAMILIES, family_model
from qbench.calibration.fisher import moments
from qbench.errors import MethodError
from qbench.models.blocks import quantizable, read_weight, write_weight
from samples import normal, token_ids
from walks import silent


def divergence(reference, logits):
    p, q = reference.log_softmax(-1), logits.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@torch.no_grad()
def caused(model, layer, change, tokens):
    """The mean divergence of a model one of whose weights is changed."""
    own = read_weight(layer).clone()
    reference = model(tokens).logits
    write_weight(layer, own + change)
    logits = model(tokens).logits
    write_weight(layer, own)
    return divergence(reference, logits)


# Not those with experts: where noise changes a choice of expert, the divergence jumps.
@pytest.mark.parametrize("name", ["llama", "gpt2-conv1d"])
def test_the_cost_of_noise_is_the_divergence_that_it_causes(name):
    model = family_model(*FAMILIES[name])
    tokens = token_ids(24, 16)
    measured = moments(model, tokens, 0, silent)
    ratios = []
    for name, layer in quantizable(model).items():
        size = 0.01 * read_weight(layer).std()
        costs, divergences = 0.0, 0.0
        for seed in range(6):
            change = size * normal(*read_weight(layer).shape, seed=seed)
            costs += measured[name].cost(change)
            divergences += caused(model, layer, change, tokens)
        if divergences > 1e-9:  # a layer may be one that nothing behind it feels
            ratios.append(costs / divergences)
    assert len(ratios) > 4
    assert min(ratios) > 0.3 and max(ratios) < 3, ratios


def test_it_is_the_same_every_time_and_leaves_the_model_alone(tiny):
    model = tiny()
    model.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (moments(model, token_ids(3, 16), 0, silent) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, own in first.items():
        assert torch.equal(own.inputs, second[name].inputs)
        assert torch.equal(own.outputs, second[name].outputs)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_token_that_is_large_and_not_felt_does_not_count():
    from qbench.calibration.fisher import _Sums

    layer = torch.nn.Linear(2, 2, bias=False)
    sums = _Sums()
    layer.register_forward_hook(sums.watch)
    x = torch.tensor([[1000.0, 0.0], [0.0, 1.0]])
    y = layer(x)
    (y[1].sum() * 3 + y[0].sum() * 0).backward()
    own = sums.moments(2)
    assert own.inputs.tolist() == [0.0, 1.0] and own.outputs.tolist() == [4.5, 4.5]
    assert own.cost(torch.ones(2, 2)) == pytest.approx(4.5)


def test_logits_that_are_not_finite_are_an_error_in_words(tiny):
    model = tiny()
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(MethodError, match="the model's logits are not finite"):
        moments(model, token_ids(2, 16), 0, silent)
