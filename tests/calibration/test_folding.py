"""Places for scales are found in any family by probing alone, and folding there changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from torch import nn

from qbench.calibration.folding import Fold, folded, has_bias, moved
from qbench.calibration.folding_search import excerpt, find_folds
from qbench.contracts import BlockInputs
from qbench.models.experts import unfuse_experts
from samples import normal, token_ids
from walks import walked_block

TOKENS = token_ids(3)
COMMON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = COMMON | {"intermediate_size": 64, "num_key_value_heads": 2}
IDS = {"bos_token_id": 0, "eos_token_id": 0}

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")
VALUES = [*range(8)] * 2 + [
    *range(8, 16)
] * 2  # two value heads of 8 channels, read by two query heads each


def gated(offset=0.0, before_mlp="post_attention_layernorm", values=VALUES):
    """The places of Llama and its relatives: source of the input, readers, offset, channels."""
    return [
        ("input_layernorm", ATTENTION, offset, [*range(32)]),
        ("self_attn.v_proj", ("self_attn.o_proj",), None, values),
        (before_mlp, MLP, offset, [*range(32)]),
        ("mlp.up_proj", ("mlp.down_proj",), None, [*range(64)]),
    ]


def per_head(parts, part, heads=4, width=8):
    """Rows of one part of a projection that is fused head by head."""
    return [(head * parts + part) * width + i for head in range(heads) for i in range(width)]


FAMILIES = {
    "llama": (hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**WIDE), gated()),
    "mistral": (hf.MistralForCausalLM, lambda: hf.MistralConfig(**WIDE, sliding_window=8), gated()),
    "qwen2-biases": (hf.Qwen2ForCausalLM, lambda: hf.Qwen2Config(**WIDE), gated()),
    "qwen3-norms-of-queries": (
        hf.Qwen3ForCausalLM,
        lambda: hf.Qwen3Config(**WIDE, head_dim=8),
        gated(),
    ),
    "gemma3-one-plus-weight": (
        hf.Gemma3ForCausalLM,
        lambda: hf.Gemma3TextConfig(**WIDE, head_dim=8, layer_types=["full_attention"] * 2),
        gated(1.0, "pre_feedforward_layernorm"),
    ),
    "olmo2-norms-after": (hf.Olmo2ForCausalLM, lambda: hf.Olmo2Config(**WIDE), gated()[1::2]),
    "phi3-fused": (
        hf.Phi3ForCausalLM,
        lambda: hf.Phi3Config(**WIDE, pad_token_id=0),
        [
            ("input_layernorm", ("self_attn.qkv_proj",), 0.0, [*range(32)]),
            ("self_attn.qkv_proj", ("self_attn.o_proj",), None, [48 + i for i in VALUES]),
            ("post_attention_layernorm", ("mlp.gate_up_proj",), 0.0, [*range(32)]),
            ("mlp.gate_up_proj", ("mlp.down_proj",), None, [*range(64, 128)]),
        ],
    ),
    "opt-relu": (
        hf.OPTForCausalLM,
        lambda: hf.OPTConfig(**COMMON, ffn_dim=64, word_embed_proj_dim=32),
        [
            ("self_attn_layer_norm", ATTENTION, 0.0, [*range(32)]),
            ("self_attn.v_proj", ("self_attn.out_proj",), None, [*range(32)]),
            ("final_layer_norm", ("fc1",), 0.0, [*range(32)]),
            ("fc1", ("fc2",), None, [*range(64)]),
        ],
    ),
    "opt-norms-after": (  # as in OPT-350m: what the norm gives is also the residual
        hf.OPTForCausalLM,
        lambda: hf.OPTConfig(
            **COMMON, ffn_dim=64, word_embed_proj_dim=32, do_layer_norm_before=False
        ),
        [
            ("self_attn.v_proj", ("self_attn.out_proj",), None, [*range(32)]),
            ("fc1", ("fc2",), None, [*range(64)]),
        ],
    ),
    "gpt2-conv1d-gelu": (
        hf.GPT2LMHeadModel,
        lambda: hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, **IDS),
        [
            ("ln_1", ("attn.c_attn",), 0.0, [*range(32)]),
            ("attn.c_attn", ("attn.c_proj",), None, [*range(64, 96)]),
            ("ln_2", ("mlp.c_fc",), 0.0, [*range(32)]),
        ],
    ),
    "neox-fused-by-head": (
        hf.GPTNeoXForCausalLM,
        lambda: hf.GPTNeoXConfig(**COMMON, intermediate_size=64, **IDS),
        [
            ("input_layernorm", ("attention.query_key_value",), 0.0, [*range(32)]),
            ("attention.query_key_value", ("attention.dense",), None, per_head(3, 2)),
            ("post_attention_layernorm", ("mlp.dense_h_to_4h",), 0.0, [*range(32)]),
        ],
    ),
    "phi-one-norm-for-all": (
        hf.PhiForCausalLM,
        lambda: hf.PhiConfig(**COMMON, intermediate_size=64, **IDS),
        [
            ("input_layernorm", (*ATTENTION, "mlp.fc1"), 0.0, [*range(32)]),
            ("self_attn.v_proj", ("self_attn.dense",), None, [*range(32)]),
        ],
    ),
    "mixtral-router": (  # the router reads the norm before the experts
        hf.MixtralForCausalLM,
        lambda: hf.MixtralConfig(**WIDE, num_local_experts=4, **IDS),
        gated()[:2],
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request, random_model):
    kind, config, expected = FAMILIES[request.param]
    model = random_model(kind, config())
    for i, parameter in enumerate(model.parameters()):  # no two norms alike, no bias zero
        generator = torch.Generator().manual_seed(i)
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    block, inputs, _ = walked_block(model, TOKENS)
    return block, inputs, expected


@torch.no_grad()
def test_places_are_those_of_the_family_and_folding_there_changes_nothing(family):
    block, inputs, expected = family
    before = copy.deepcopy(block.state_dict())
    folds = find_folds(block, inputs)
    assert [(f.source, f.layers, f.offset, f.channels.tolist()) for f in folds] == expected
    generator = torch.Generator().manual_seed(1)
    values = {}
    output = [inputs.run(block, hidden, i) for i, hidden in enumerate(inputs.full)]
    for fold in folds:
        scale = fold.shared(torch.randn(len(fold.channels), generator=generator).exp())
        alone = moved(block, fold, scale)
        assert set(folded(block, fold, scale)) == set(alone) - {
            f"{name}.weight" for name in fold.layers
        }
        values |= moved(block, fold, scale, values)
        for changed in (alone, values):
            for i, hidden in enumerate(inputs.full):
                error = (inputs.run(block, hidden, i, changed) - output[i]).norm()
                assert error <= 1e-4 * (output[i] - hidden).norm()
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    assert not any(module._forward_hooks for module in block.modules())


def test_experts(random_model):
    """Experts see some tokens each: what is inside them is found, and nothing before them."""
    model = random_model(
        hf.MixtralForCausalLM, hf.MixtralConfig(**WIDE, num_local_experts=4, **IDS)
    )
    unfuse_experts(model)
    block, inputs, _ = walked_block(model, TOKENS)
    folds = find_folds(block, inputs)
    assert [(f.source, f.layers, f.offset, f.channels.tolist()) for f in folds[:2]] == gated()[:2]
    assert {f.source for f in folds[2:]} == {f"mlp.experts.{i}.up_proj" for i in range(4)}


def test_a_block_in_bfloat16_is_probed_in_float32(random_model):
    kind, config, expected = FAMILIES["llama"]
    block, inputs, _ = walked_block(random_model(kind, config()).bfloat16(), TOKENS)
    assert [
        (f.source, f.layers, f.offset, f.channels.tolist()) for f in find_folds(block, inputs)
    ] == expected


def test_norms_with_a_bias():
    block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4, bias=False))
    hidden = normal(2, 5, 8)
    (fold,) = find_folds(block, BlockInputs([hidden], [hidden], [((), {})]))
    assert (fold.source, fold.layers) == ("0", ("1",)) and has_bias(block, fold)
    block[0] = nn.LayerNorm(8, bias=False)
    assert not has_bias(block, fold)
    assert not has_bias(block, Fold(("1",), "1", torch.arange(8)))


def test_a_scale_is_shared_by_its_geometric_mean():
    fold = Fold(("o",), "v", torch.tensor([3, 1, 3, 1]))
    torch.testing.assert_close(
        fold.shared(torch.tensor([1.0, 2.0, 4.0, 8.0])), torch.tensor([2.0, 4.0, 2.0, 4.0])
    )


def test_gradients_reach_a_shared_scale_once_for_every_use():
    source, layer = nn.Linear(3, 2).double(), nn.Linear(4, 1).double()
    block = nn.ModuleDict({"v": source, "o": layer})
    fold = Fold(("o",), "v", torch.tensor([0, 1, 0, 1]))
    log = torch.zeros(2, requires_grad=True)

    def loss(log):
        return sum(
            value.square().sum() for value in moved(block, fold, log[fold.channels].exp()).values()
        )

    loss(log).backward()
    step = 1e-2
    for i in range(2):
        shift = step * torch.eye(2)[i]
        slope = (loss(shift) - loss(-shift)) / (2 * step)
        assert log.grad[i].item() == pytest.approx(slope.item(), rel=1e-3)


def test_an_excerpt_is_cut_where_the_arguments_allow():
    class Block(nn.Module):
        def forward(self, hidden, mask, per_position):
            return hidden * mask + per_position.sum(0)

    hidden = torch.randn(4, 10, 6)
    mask, positions = torch.ones(4, 10, 1), torch.ones(2, 10, 1)
    inputs = BlockInputs([hidden], [hidden], [((mask,), {"per_position": positions})])
    cut = excerpt(Block(), inputs, 1, 3)
    assert cut.quantized[0].shape == (1, 3, 6) and cut.arguments[0][1]["per_position"].shape == (
        2,
        3,
        1,
    )
    assert excerpt(Block(), inputs, 99, 99).quantized[0].shape == (4, 10, 6)
    square = torch.randn(
        4, 10, 10
    )  # as many channels as tokens: a row of factors would be cut like a mask
    clash = BlockInputs([square], [square], [((mask,), {"per_position": torch.ones(2, 10)})])
    assert excerpt(Block(), clash, 1, 3).quantized[0].shape == (1, 10, 10)
