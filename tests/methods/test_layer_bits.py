"""Layers of one block at unlike bits, in every method: each is what its own scheme asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import qbench
from qbench.contracts import BlockResult
from qbench.errors import MethodError
from qbench.formats import Dense
from qbench.methods.rtn import RTN
from qbench.models.blocks import linears, quantizable, read_weight
from qbench.registry import declarations
from qbench.scheme import LayerRule, Scheme
from samples import token_ids

RULES = ("*.0.self_attn.*=skip", "*.1.mlp.up_proj=skip", "*.down_proj=3g16", "*.1.*.v_proj=3")
SCHEME = Scheme(2, 32, rules=tuple(map(LayerRule.parse, RULES)))
QUICK = ("rtn", "gptq")
SETTINGS = {"omniquant": {"let": "on"}}


def methods():
    for name, declared in declarations().items():
        if name != "none":
            marks = () if name in QUICK else pytest.mark.slow
            yield pytest.param(name, declared.trains, id=name, marks=marks)


@pytest.mark.parametrize("name, trains", methods())
def test_every_layer_has_what_it_was_asked(tiny, name, trains):
    settings = SETTINGS.get(name, {}) | ({"epochs": 1, "batch_size": 2} if trains else {})
    own = {layer: read_weight(module).clone() for layer, module in quantizable(tiny()).items()}
    for window in (1, 2) if name in ("flexround", "uniquanf") else (1,):
        method = qbench.get_method(name, **settings | ({"window": 2} if window == 2 else {}))
        model = tiny()
        quantized = qbench.quantize(model, method, SCHEME, token_ids(4, 16))
        assert quantized.weights.keys() == own.keys()
        for layer, weight in quantized.weights.items():
            asked = SCHEME.of_layer(layer)
            module = model.get_submodule(layer)
            assert torch.equal(read_weight(module), weight.dequantize())
            if asked is None:
                assert type(weight) is Dense and torch.equal(weight.dequantize(), own[layer])
                continue
            assert weight.bits == asked.bits
            if weight.format != "lattice":
                assert weight.group_size == asked.group_length(weight.shape[1])


def test_a_rule_for_some_layers_leaves_the_others_as_they_would_be(tiny):
    tokens = token_ids(4, 16)
    plain = qbench.quantize(tiny(), "rtn", Scheme(2, 32), tokens).weights
    mixed = qbench.quantize(tiny(), "rtn", SCHEME, tokens).weights
    for name, weight in mixed.items():
        if SCHEME.of_layer(name) == Scheme(2, 32):
            assert torch.equal(weight.dequantize(), plain[name].dequantize())


@dataclass(frozen=True)
class OneWidth:
    """A method that sees blocks, and takes its scheme to be the same for all layers."""

    name: ClassVar[str] = "onewidth"
    paper: ClassVar[str] = "none"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = False

    def quantize_block(self, block, inputs, targets, scheme):
        weights = {}
        for name in scheme.of_layers(linears(block)):
            weight = read_weight(block.get_submodule(name))
            weights[name] = RTN().quantize_weight(weight, Scheme(scheme.bits, scheme.group_size))
        return BlockResult(weights)


def test_a_method_that_takes_no_notice_is_found_out(tiny):
    between = Scheme(2, 32, rules=(LayerRule("*.0.*", 4),))
    quantized = qbench.quantize(tiny(), OneWidth(), between, token_ids(4, 16))
    assert {w.bits for name, w in quantized.weights.items() if ".0." in name} == {4}
    within = Scheme(2, 32, rules=(LayerRule("*.q_proj", 4),))
    with pytest.raises(MethodError, match="q_proj: 4 bits were asked for, and the method gave 2"):
        qbench.quantize(tiny(), OneWidth(), within, token_ids(4, 16))
