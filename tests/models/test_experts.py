"""Experts in stacks become linear layers: same function, same memory, nothing missed."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

import qbench
from families import COMMON, family_model
from qbench import Scheme
from qbench.errors import ModelError
from qbench.models.blocks import decoder_blocks, linears, quantizable
from qbench.models.experts import Experts, unfuse_experts
from qbench.models.loading import load_model, load_skeleton
from qbench.models.source import find_model
from samples import token_ids
from walks import visit_layers

TOKENS = token_ids(4)
SHAPE = COMMON | {
    "intermediate_size": 64,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_experts_per_tok": 2,
}
LOCAL = SHAPE | {"num_local_experts": 4}
MANY = SHAPE | {"num_experts": 4, "moe_intermediate_size": 48}
GROUPED = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 48,
}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
KINDS = {
    "mixtral": ("MixtralConfig", LOCAL),
    "qwen2-shared-expert": ("Qwen2MoeConfig", MANY | {"shared_expert_intermediate_size": 64}),
    "qwen3": ("Qwen3MoeConfig", MANY),
    "deepseek-first-block-dense": (
        "DeepseekV3Config",
        SHAPE | GROUPED | LATENT | {"first_k_dense_replace": 1, "num_key_value_heads": 2},
    ),
    "phimoe-linear-router": ("PhimoeConfig", LOCAL),
}
FIVE = int(transformers.__version__.split(".")[0]) >= 5
if FIVE:  # in version 4 these are what is refused
    KINDS["gpt-oss-transposed-in-turns-biases"] = (
        "GptOssConfig",
        LOCAL | {"layer_types": ["full_attention"] * 2},
    )
stacked = pytest.mark.skipif(
    not FIVE, reason="transformers 4 has linear layers for experts, or what is refused"
)


@pytest.fixture
def make():
    def made(kind="qwen3", **changes):
        config, values = KINDS[kind]
        return family_model(config, values | changes)

    return made


@pytest.fixture(params=KINDS)
def model(request, make):
    return make(request.param)


class Opaque(nn.Module):
    """Experts that declare nothing."""

    def __init__(self, *shape):
        super().__init__()
        self.w1 = nn.Parameter(torch.ones(shape))

    def forward(self, hidden):
        return hidden


def stacks(model):
    return [name for name, value in model.named_parameters() if value.dim() > 2]


def numbers(model):
    return sum(value.numel() for value in model.parameters())


def memory(model):
    storages = [value.untyped_storage() for value in model.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@torch.no_grad()
def test_the_function_the_parameters_and_the_memory_stay(model):
    before, count, held = model(TOKENS).logits, numbers(model), memory(model)
    found = unfuse_experts(model)
    assert found == len([module for module in model.modules() if isinstance(module, Experts)])
    assert (found > 0) == FIVE and not stacks(model)
    torch.testing.assert_close(
        model(TOKENS).logits, before, rtol=1e-4, atol=1e-4 * before.abs().max().item()
    )
    assert numbers(model) == count and memory(model) == held
    assert unfuse_experts(model) == 0


def test_all_linear_layers_of_experts_are_quantizable_and_no_router_is(model):
    unfuse_experts(model)
    names = set(quantizable(model))
    assert {f"experts.{i}" for i in range(4)} == {
        f"experts.{n.split('.experts.')[1][0]}" for n in names if ".experts." in n
    }
    assert not {
        name for name in names if name.endswith((".gate", ".router", ".shared_expert_gate"))
    }
    inside = sum(
        value.numel() for value in decoder_blocks(model)[1].parameters() if value.dim() > 1
    )
    routers = inside - sum(layer.weight.numel() for layer in quantizable(model).values())
    assert routers <= 2 * 5 * 32  # of two blocks: four experts and a gate


@pytest.mark.parametrize("gate", ["shared_expert", "gate"])
def test_only_a_layer_on_its_own_beside_experts_is_a_router(gate):
    block = nn.Module()
    block.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
    block.attention = nn.ModuleDict(
        {"k": nn.Linear(8, 4), "v": nn.Linear(8, 4)}
    )  # as wide as there are experts
    block.up = nn.Linear(8, 16)
    block.add_module(gate, nn.Linear(8, 1))
    block.router = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4))
    assert set(linears(block)) == {
        *(f"experts.{i}" for i in range(4)),
        "attention.k",
        "attention.v",
        "up",
    }


@stacked
def test_a_copy_is_whole_and_its_own(make):
    model = make()
    unfuse_experts(model)
    other = copy.deepcopy(model)
    expected = model(TOKENS).logits
    for layer in quantizable(model).values():
        layer.weight.data.zero_()
    assert torch.equal(other(TOKENS).logits, expected)


@stacked
def test_experts_without_a_gate_and_with_a_norm_after_them():
    """The rest of what transformers can declare; an index past the last expert stands for none."""
    from transformers.integrations.moe import use_experts_implementation

    @use_experts_implementation(has_gate=False, has_post_expert_norm=True)
    class Plain(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.num_experts = 3
            self.up_proj = nn.Parameter(torch.randn(3, 12, 8))
            self.down_proj = nn.Parameter(torch.randn(3, 8, 12))
            self.act_fn = nn.GELU()
            self.post_expert_norm = nn.LayerNorm(8)

    config = transformers.LlamaConfig(experts_implementation="batched_mm")
    owner = nn.ModuleDict({"experts": Plain(config)})
    hidden, index, weights = (
        torch.randn(5, 8),
        torch.tensor([[0, 2], [1, 0], [2, 1], [2, 0], [1, 2]]),
        torch.rand(5, 2),
    )
    with torch.no_grad():
        expected = owner["experts"](hidden, index, weights)
        assert unfuse_experts(owner, refuse=False) == 1
        torch.testing.assert_close(owner["experts"](hidden, index, weights), expected)
        assert not owner["experts"](hidden, torch.full_like(index, 3), weights).any()
    assert [name for name, _ in owner.named_parameters() if "norm" in name] == [
        "experts.0.shared.post_expert_norm.weight",
        "experts.0.shared.post_expert_norm.bias",
    ]


def test_a_skeleton_has_the_layers_of_the_model(model, tmp_path):
    """From the config alone, on the meta device."""
    model.save_pretrained(tmp_path / "plain")
    skeleton = load_skeleton(find_model(str(tmp_path / "plain")))
    assert all(value.is_meta for value in skeleton.parameters())
    unfuse_experts(model)
    shapes = [
        {name: layer.weight.shape for name, layer in quantizable(m).items()}
        for m in (skeleton, model)
    ]
    assert shapes[0] == shapes[1] and numbers(skeleton) == numbers(model)


@torch.no_grad()
def test_a_loaded_folder_and_a_saved_quantized_model_are_the_same_model(model, tmp_path, tokenizer):
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    read, _ = load_model(find_model(str(tmp_path / "plain")), "float32")
    assert not stacks(read)
    unfuse_experts(model)
    assert torch.equal(read(TOKENS).logits, model(TOKENS).logits)
    result = qbench.quantize(model, "rtn", Scheme(3, 16))
    assert any(".experts.3." in name for name in result.weights)
    loaded = qbench.load(result.save(tmp_path / "saved"))
    assert set(loaded.weights) == set(result.weights)
    torch.testing.assert_close(
        loaded.model(TOKENS).logits, model(TOKENS).logits, rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_each_expert_is_visited_with_its_own_tokens(make):
    """Sixteen experts for twelve tokens, batch by batch: some have few, some none."""
    model = make(num_experts=16)
    unfuse_experts(model)
    few = TOKENS[:, :3]
    expected = {name: 0 for name in quantizable(model)}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: expected.update(
                {name: args[0].reshape(-1, args[0].shape[-1]).shape[0]}
            )
        )
        for name, layer in quantizable(model).items()
    ]
    model(few)
    for hook in hooks:
        hook.remove()
    counts = {}
    visit_layers(
        model, few, lambda name, layer, stats: counts.update({name: stats.count}), batch_size=1
    )
    assert counts == expected
    assert {counts[name] for name in counts if ".experts." not in name} == {12}
    experts = [count for name, count in counts.items() if name.endswith("down_proj")]
    assert sum(experts) == 2 * 12 * 2 and 0 in experts


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "flexround"])
def test_experts_that_no_token_reaches_are_quantized_too(make, method):
    model = make(num_experts=16)
    params = {"epochs": 1, "batch_size": 2} if method == "flexround" else {}
    result = qbench.quantize(
        model, qbench.get_method(method, **params), Scheme(3, 16), TOKENS[:, :3]
    )
    assert len([name for name in result.weights if ".experts." in name]) == 2 * 16 * 3
    assert torch.isfinite(model(TOKENS).logits).all()


@pytest.mark.parametrize("shape", [(4, 16, 32), (64, 65)])
def test_weights_outside_linear_layers_are_refused_by_name(tiny, shape):
    """A stack of matrices, or one matrix that is larger than all linear layers of the decoder."""
    model = tiny()
    model.model.layers[1].mlp.experts = Opaque(*shape)
    with pytest.raises(
        ModelError,
        match=r"model\.layers\.1\.mlp\.experts \(Opaque\) keeps w1 of shape \(.*cannot be",
    ):
        qbench.quantize(model, "rtn", Scheme(4, 16))


@stacked
def test_a_declaration_that_does_not_fit_its_parameters_is_refused(make):
    model = make()
    experts = model.model.layers[0].mlp.experts
    experts.scale = nn.Parameter(torch.ones(4))
    with pytest.raises(
        ModelError, match=r"model\.layers\.0\.mlp\.experts \(Qwen3MoeExperts\) keeps gate_up_proj"
    ):
        unfuse_experts(model)


def test_small_parameters_and_convolutions_are_left_alone(tiny):
    model = tiny()
    model.model.layers[0].mlp.mixing = nn.Conv1d(32, 32, 4)
    model.model.layers[0].mlp.shift = nn.Parameter(torch.ones(1, 1, 32))
    assert unfuse_experts(model) == 0
