"""The walk visits every layer with the statistics of truly sequential inputs, in any decoder of transformers."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf

import qbench
from qbench import Scheme
from qbench.blocks import decoder_blocks, quantizable, read_weight, write_weight
from qbench.calibrate import walk_linears
from qbench.errors import MethodError, ModelError

COMMON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = COMMON | {"intermediate_size": 64, "num_key_value_heads": 1}
FAMILIES = {
    "llama": (hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**WIDE, tie_word_embeddings=True)),
    "mistral": (hf.MistralForCausalLM, lambda: hf.MistralConfig(**WIDE, sliding_window=8)),
    "qwen2-biases": (hf.Qwen2ForCausalLM, lambda: hf.Qwen2Config(**WIDE)),
    "qwen3": (hf.Qwen3ForCausalLM, lambda: hf.Qwen3Config(**WIDE, head_dim=16)),
    "gemma3-mixed-masks": (
        hf.Gemma3ForCausalLM,
        lambda: hf.Gemma3TextConfig(
            **WIDE, head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
    ),
    "phi3-fused": (hf.Phi3ForCausalLM, lambda: hf.Phi3Config(**WIDE, pad_token_id=0)),
    "opt": (hf.OPTForCausalLM, lambda: hf.OPTConfig(**COMMON, ffn_dim=64, word_embed_proj_dim=32)),
    "gpt2-conv1d": (
        hf.GPT2LMHeadModel,
        lambda: hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    ),
}


@pytest.fixture(params=FAMILIES)
def model(request, random_model):
    kind, config = FAMILIES[request.param]
    return random_model(kind, config())


def tokens(samples=5, length=16):
    return torch.randint(0, 64, (samples, length), generator=torch.Generator().manual_seed(0))


def walk(model, visit, samples=None, batch_size=2):
    walk_linears(
        model,
        tokens() if samples is None else samples,
        visit,
        device=torch.device("cpu"),
        progress=lambda fraction, text: None,
        batch_size=batch_size,
        dtype=torch.float32,
    )


def by_forward_passes(model, change):
    """The plain reference: one pass over the whole model for every layer, in the order of execution."""
    order = []
    layers = quantizable(model)
    hooks = [layer.register_forward_hook(lambda *_, name=name: order.append(name)) for name, layer in layers.items()]
    model(tokens())
    for hook in hooks:
        hook.remove()
    found = {}
    for name in order:
        inputs = []
        hook = layers[name].register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        model(tokens())
        hook.remove()
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
        found[name] = 2 / len(rows) * rows.T @ rows
        change(layers[name])
    return found


@torch.no_grad()
def test_statistics_are_those_of_the_quantized_prefix(model):
    def halve(layer):
        write_weight(layer, (read_weight(layer) * 2).round() / 2)

    expected = by_forward_passes(copy.deepcopy(model), halve)
    visited = {}

    def visit(name, layer, stats):
        assert stats.count == tokens().numel()
        visited[name] = stats.hessian.double()
        halve(layer)

    walk(model, visit)
    assert list(visited) == list(expected)
    for name, hessian in expected.items():
        torch.testing.assert_close(visited[name], hessian, rtol=2e-3, atol=2e-4 * hessian.abs().max().item())


def test_the_model_is_whole_after_the_walk(model):
    before = model(tokens()).logits
    walk(model, lambda name, layer, stats: None)
    assert torch.equal(model(tokens()).logits, before)


@pytest.mark.parametrize("name", ["gptq", "alternating"])
def test_every_family_is_quantized(model, name):
    prefix, blocks = decoder_blocks(model)
    assert len(blocks) == 2
    result = qbench.quantize(model, name, Scheme(4, 16), tokens())
    assert set(result.weights) == set(quantizable(model)) and all(layer.startswith(prefix) for layer in result.weights)
    for layer, weight in result.weights.items():
        assert torch.equal(read_weight(quantizable(model)[layer]), weight.dequantize())
    assert torch.isfinite(model(tokens()).logits).all()


def test_the_batch_size_changes_nothing_but_rounding(tiny):
    found = []
    for batch_size in (1, 5):
        model = tiny()
        qbench.quantize(model, "gptq", Scheme(3, 16), tokens(), batch_size=batch_size)
        found.append(model(tokens()).logits)
    assert (found[0] - found[1]).abs().mean() < 0.1 * found[0].std()


def test_a_layer_that_no_token_reaches_is_visited_with_count_zero(tiny):
    model = tiny()
    mlp = model.model.layers[1].mlp
    mlp.expert = torch.nn.Linear(32, 32)
    counts = {}
    walk(model, lambda name, layer, stats: counts.update({name: stats.count}))
    assert counts.pop("model.layers.1.mlp.expert") == 0
    assert set(counts.values()) == {tokens().numel()}


def test_inputs_that_are_not_finite_name_the_layer(tiny):
    model = tiny()
    model.model.layers[1].input_layernorm.weight.data[0] = float("inf")
    with pytest.raises(MethodError, match="the inputs of model.layers.1.self_attn.q_proj are not finite"):
        walk(model, lambda name, layer, stats: None)


def test_a_failing_visit_leaves_no_hooks(tiny):
    model = tiny()

    def fail(name, layer, stats):
        raise MethodError("no")

    with pytest.raises(MethodError):
        walk(model, fail)
    assert not any(layer._forward_pre_hooks for layer in quantizable(model).values())
    assert model(tokens()).logits.shape == (5, 16, 259)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ModelError, match="Linear has no list of blocks with linear layers"):
        decoder_blocks(torch.nn.Linear(2, 2))
