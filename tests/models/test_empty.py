"""Models without weights take no memory, whatever their size, and their buffers are as ever."""

from __future__ import annotations

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from families import FAMILIES
from qbench.models.empty import built_empty
from qbench.models.loading import load_skeleton
from qbench.models.source import find_model

LARGE = {  # of Llama 3 70B
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def test_a_layer_may_be_larger_than_what_building_is_granted(tmp_path):
    LlamaConfig(num_hidden_layers=80, architectures=["LlamaForCausalLM"], **LARGE).save_pretrained(
        tmp_path
    )
    model = load_skeleton(find_model(str(tmp_path)))
    assert sum(parameter.numel() for parameter in model.parameters()) == 70_553_706_496
    assert all(parameter.is_meta for parameter in model.parameters())


def test_buffers_are_those_of_a_model_that_is_built_whole(family, request):
    kind, values = FAMILIES[request.node.callspec.params["family"]]
    config = getattr(transformers, kind)(**values)
    empty = built_empty(lambda: AutoModelForCausalLM.from_config(config))
    whole = AutoModelForCausalLM.from_config(config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    expected = dict(whole.named_buffers())
    buffers = dict(empty.named_buffers())
    assert buffers.keys() == expected.keys()
    for name, buffer in buffers.items():
        assert torch.equal(buffer, expected[name]), name


class Odd(nn.Module):
    """A buffer that begins with no values."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        table = torch.empty(4)
        table.fill_(2.0)
        self.register_buffer("table", table)


def test_a_buffer_that_begins_empty_has_its_values():
    model = built_empty(Odd)
    assert model.table.tolist() == [2.0] * 4 and model.layer.weight.is_meta
