"""A model that the calibration walk does not compute is refused, and no other."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import qbench
from qbench import Scheme
from qbench.calibration.soundness import require_walkable
from qbench.errors import ModelError
from samples import token_ids

TOKENS = token_ids(4, 16)
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


class Looped(LlamaForCausalLM):
    """Goes through its blocks twice."""

    def forward(self, input_ids=None, **others):
        once = self.model(input_ids=input_ids, **others).last_hidden_state
        return super().forward(inputs_embeds=once, **others)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_model_that_loops_over_its_blocks_is_refused(random_model, method):
    model = random_model(Looped, LlamaConfig(**SHAPE))
    before = model(TOKENS).logits
    with pytest.raises(ModelError, match="a Looped does not run its blocks one after the other"):
        qbench.quantize(model, method, Scheme(4, 16), TOKENS)
    assert torch.equal(model(TOKENS).logits, before)
    assert qbench.quantize(model, "rtn", Scheme(4, 16)).weights, "weights alone need no walk"


def test_a_family_is_walked_as_it_computes(family):
    require_walkable(family(), TOKENS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_reason_to_refuse(tiny, dtype):
    require_walkable(tiny().to(dtype), TOKENS[:, :1])


def test_a_token_that_is_never_said_is_no_reason_to_refuse(tiny):
    model = tiny()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(259))
    model.lm_head.bias.data[7] = float("-inf")
    require_walkable(model, TOKENS)


def test_logits_that_are_not_finite_are_refused(tiny):
    model = tiny()
    model.lm_head.weight.data *= 1e30
    model.model.norm.weight.data *= 1e30
    with pytest.raises(ModelError, match="the logits of the LlamaForCausalLM are not finite"):
        qbench.quantize(model, "gptq", Scheme(4, 16), TOKENS)
