"""How blocks return their hidden states is kept, whatever the sequence and its length."""

from __future__ import annotations

import pytest
import torch
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

import qbench
from qbench import Scheme
from qbench.calibration.head import Returned
from samples import token_ids

TOKENS = token_ids(4, 16)


@pytest.mark.parametrize("output", [torch.ones(2), (torch.ones(2),), [torch.ones(2), 3], (1, 2, 3)])
def test_an_output_comes_back_in_its_kind_and_length(output):
    again = Returned.of(output).around(torch.zeros(2))
    assert type(again) is type(output)
    if not isinstance(output, torch.Tensor):
        assert len(again) == len(output) and torch.equal(again[0], torch.zeros(2))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_family_whose_blocks_return_lists_is_quantized(random_model, method):
    shape = OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=32)
    model = random_model(OpenAIGPTLMHeadModel, shape)
    assert len(qbench.quantize(model, method, Scheme(4, 16), TOKENS).weights) == 8
