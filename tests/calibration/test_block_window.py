"""Windows of blocks: the walk through them, their starts, and what training them together gives."""

from __future__ import annotations

import copy

import pytest
import torch

import qbench
from families import FAMILIES, family_model
from qbench import Scheme
from qbench.calibration.block_window import BlockWindow
from qbench.calibration.objective import block_loss
from qbench.calibration.walk import walk_blocks
from qbench.errors import ConfigError
from qbench.models.blocks import linears
from samples import token_ids
from walks import silent

TOKENS = token_ids(8, 12, vocabulary=64)


def walked(model, window):
    """(name, block, inputs, targets) of every visit; nothing is quantized."""
    visits = []
    walk_blocks(
        model,
        TOKENS,
        lambda *visit: visits.append(visit),
        torch.device("cpu"),
        silent,
        2,
        torch.float32,
        window,
    )
    return visits


def quantized(model, method, **params):
    params = {"batch_size": 2, **params}
    return qbench.quantize(
        copy.deepcopy(model), qbench.get_method(method, **params), Scheme(2), TOKENS
    )


# Masks differ from block to block, blocks return tuples, and arguments are positional.
@pytest.mark.parametrize("family", ["llama", "gemma3-mixed-masks", "gpt2-conv1d", "opt"])
def test_a_window_is_its_blocks_one_behind_the_other(family):
    model = family_model(*FAMILIES[family])
    first, second = walked(model, 1)
    ((name, window, inputs, targets),) = walked(model, 2)
    prefix = first[0].rpartition(".")[0]
    assert name == f"{prefix}.0-1" and isinstance(window, BlockWindow)
    assert [*linears(window)] == [
        f"{number}.{layer}" for number in "01" for layer in linears(first[1])
    ]
    for found, expected in zip(targets, second[3], strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(inputs.full, first[2].full, strict=True):
        assert torch.equal(found, expected)
    assert inputs.logits is not None and first[2].logits is None


def test_what_is_left_over_is_a_window_of_its_own(tiny):
    names = [name for name, *_ in walked(tiny(num_hidden_layers=5), 2)]
    assert names == ["model.layers.0-1", "model.layers.2-3", "model.layers.4"]
    names = [name for name, *_ in walked(tiny(num_hidden_layers=5), 3)]
    assert names == ["model.layers.0-2", "model.layers.3-4"]


@pytest.mark.parametrize("method", ["uniquanf", "flexround", "omniquant", "unisvq"])
def test_the_start_is_that_of_block_by_block(tiny, method):
    model = tiny(num_hidden_layers=3)
    alone = quantized(model, method, epochs=0)
    together = quantized(model, method, epochs=0, window=2)
    assert [*together.weights] == [*alone.weights]
    for layer, weight in alone.weights.items():
        assert torch.equal(weight.dequantize(), together.weights[layer].dequantize())


def test_both_blocks_are_trained_on_the_output_of_the_second(tiny):
    model = tiny(num_hidden_layers=3)
    made = quantized(model, "uniquanf", epochs=6, window=2, head=0, holdout=0.25)
    start = quantized(model, "uniquanf", epochs=0)
    assert [*made.log] == ["model.layers.0", "model.layers.1", "model.layers.2"]
    log = made.log["model.layers.1"]
    assert "final" not in made.log["model.layers.0"] and "final" in made.log["model.layers.2"]
    assert log["best_epoch"] > 0 and log["final"] < log["initial"]
    layers = [*linears(model.model.layers[0])]
    for entry in made.log.values():
        assert [*entry["weight_errors"]] == layers
    for number in (0, 1):
        name = f"model.layers.{number}.mlp.down_proj"
        assert not torch.equal(made.weights[name].dequantize(), start.weights[name].dequantize())
    # The loss that is logged is that of the model that was made, behind its second block.
    held_out = TOKENS[6:]
    output = made.model(held_out, output_hidden_states=True).hidden_states[2].detach()
    target = model(held_out, output_hidden_states=True).hidden_states[2].detach()
    assert block_loss(output, target, "damped").item() == pytest.approx(log["final"], rel=1e-3)


def test_a_window_without_a_block_is_refused():
    with pytest.raises(ConfigError, match="window=0 is too small; give 1 or more"):
        qbench.get_method("uniquanf", window=0)
