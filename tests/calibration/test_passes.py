"""Where streams are in files a block is walked in passes: the same visits, and less in memory."""

from __future__ import annotations

import pytest
import torch

from qbench.calibration.spool import spooling
from qbench.errors import MethodError
from qbench.models.blocks import quantizable, read_weight, write_weight
from qbench.models.experts import unfuse_experts
from samples import token_ids
from walks import visit_layers

TOKENS = token_ids()


def visits_of(model):
    """The name and statistics of every visit, each of which rounds its layer; and the logits."""
    visits = []

    def visit(name, layer, stats):
        visits.append((name, stats.hessian.clone(), stats.count))
        write_weight(layer, (read_weight(layer) * 2).round() / 2)

    visit_layers(model, TOKENS, visit)
    return visits, model(TOKENS).logits


@torch.no_grad()
def test_visits_are_those_of_streams_side_by_side(family, tmp_path):
    made = []
    for room in (1 << 30, 0):
        model = family()
        unfuse_experts(model)
        with spooling(tmp_path, room) as spool:
            made.append(visits_of(model))
        assert bool(spool.mapped) == (room == 0)
    (expected, logits), (visits, same) = made
    assert [name for name, *_ in visits] == [name for name, *_ in expected]
    for (name, hessian, count), (_, other, number) in zip(visits, expected, strict=True):
        assert torch.equal(hessian, other) and count == number, name
    assert torch.equal(logits, same)


@torch.no_grad()
def test_a_layer_that_no_token_reaches_is_visited_last(tiny, tmp_path):
    model = tiny()
    model.model.layers[1].mlp.expert = torch.nn.Linear(32, 32)
    with spooling(tmp_path, room=0):
        visits, _ = visits_of(model)
    assert visits[-1][0] == "model.layers.1.mlp.expert" and visits[-1][2] == 0
    assert len(visits) == len(quantizable(model))


def test_one_stream_at_a_time_is_inside_the_block(tiny, tmp_path):
    """Else what a block keeps alive between its layers would be in memory for every batch."""
    model = tiny()
    inside = []
    most = []

    def enter(module, args):
        inside.append(module)
        most.append(len(inside))

    def leave(module, args, output):
        inside.pop()

    for block in model.model.layers:
        block.mlp.register_forward_pre_hook(enter)
        block.mlp.register_forward_hook(leave, always_call=True)
    with spooling(tmp_path, room=0):
        visit_layers(model, TOKENS, lambda *_: None)
    assert max(most) == 1 and not inside
    most.clear()
    visit_layers(model, TOKENS, lambda *_: None)
    assert max(most) == 3, "side by side it is every batch"


def test_inputs_that_are_not_finite_name_the_layer_and_leave_no_hooks(tiny, tmp_path):
    model = tiny()
    model.model.layers[1].input_layernorm.weight.data[0] = float("inf")
    with (
        spooling(tmp_path, room=0),
        pytest.raises(MethodError, match="the inputs of model.layers.1.self_attn.q_proj are not"),
    ):
        visit_layers(model, TOKENS, lambda *_: None)
    assert not any(layer._forward_pre_hooks for layer in quantizable(model).values())
