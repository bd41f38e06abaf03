"""What `quantize` is asked for is looked at before any work, and refused in a sentence."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import qbench
from qbench import Scheme
from qbench.calibration.windows import calibration_windows, windows
from qbench.errors import ConfigError, ModelError
from qbench.models.blocks import require_own_weights
from samples import PROMPT, token_ids

TOKENS = token_ids(4, 32, vocabulary=256)
TEXT = "The quick brown fox jumps over the lazy dog. " * 40


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (TOKENS + 300, "has the token 5.., and the model's tokens are from 0 to 258"),
        (TOKENS - 400, "has the token -.*, and the model's tokens are from 0 to 258"),
        (TOKENS.float(), "is a tensor of torch.float32; give token ids"),
        (TOKENS > 100, "is a tensor of torch.bool"),
        (TOKENS.to(torch.uint8), "is a tensor of torch.uint8"),
        (TOKENS[0], r"has the shape \(32,\); give token ids \(samples, length\)"),
        (TOKENS[None], r"has the shape \(1, 4, 32\)"),
        (TOKENS[:0], r"has the shape \(0, 32\)"),
        (TOKENS[:, :0], r"has the shape \(4, 0\)"),
        (TOKENS.tolist(), "a list, is neither texts nor a tensor"),
        (TOKENS.numpy(), "a ndarray, is neither texts nor a tensor"),
        ([TEXT], "is text, and there is no tokenizer"),
        (TEXT, "is text, and there is no tokenizer"),
    ],
)
def test_a_calibration_that_the_model_cannot_take_is_refused(tiny, calibration, message):
    model = tiny()
    before = model(PROMPT).logits
    with pytest.raises(ConfigError, match=message):
        qbench.quantize(model, "gptq", Scheme(4, 16), calibration)
    assert torch.equal(model(PROMPT).logits, before)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is too small; give 1 or more"),
        ({"batch_size": -1}, "batch_size=-1 is too small"),
        ({"batch_size": 1.5}, "batch_size=1.5 is no count"),
        ({"device": "cudaa"}, "device='cudaa' cannot be used here"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used here"),
        ({"device": "meta"}, "device='meta' cannot be used here"),
        ({"scheme": None}, "scheme=None is no scheme"),
        ({"dtype": "floaty"}, "unknown dtype 'floaty'"),
        ({"dtype": torch.bfloat16}, "unknown dtype torch.bfloat16. Did you mean 'bfloat16'?"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting, message):
    """Before the model is even looked for."""
    given = {"scheme": Scheme(4, 16), **setting}
    with pytest.raises(ConfigError, match=message):
        qbench.quantize("no/model", "rtn", **given)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (GPT2LMHeadModel, GPT2Config),
        (GPTJForCausalLM, GPTJConfig),
    ],
)
def test_samples_longer_than_the_table_of_positions_are_refused(random_model, kind, config):
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 259, "n_positions": 24}
    rotary = {"rotary_dim": 8} if config is GPTJConfig else {}
    model = random_model(kind, config(**shape, **rotary))
    with pytest.raises(ConfigError, match="samples of 32 tokens, .* has learned 24 positions"):
        qbench.quantize(model, "gptq", Scheme(4, 16), TOKENS)
    qbench.quantize(model, "gptq", Scheme(4, 16), TOKENS[:, :24])


def test_computed_positions_have_no_end(tiny):
    model = tiny(max_position_embeddings=24)
    assert qbench.quantize(model, "gptq", Scheme(4, 16), TOKENS).weights


def test_numbers_of_32_bits_are_the_same_tokens(tiny):
    facts = []
    for tokens in (TOKENS, TOKENS.int()):
        made = qbench.quantize(tiny(num_hidden_layers=1), "gptq", Scheme(4, 16), tokens)
        facts.append(made.manifest["calibration"])
    assert facts[0] == facts[1]


def test_one_text_is_one_text(tokenizer):
    """And no sequence of texts of one character."""
    assert torch.equal(windows(TEXT, tokenizer, 16), windows([TEXT], tokenizer, 16))
    drawn = calibration_windows(TEXT, tokenizer, 4, 16, 0)
    assert torch.equal(drawn, calibration_windows([TEXT], tokenizer, 4, 16, 0))


def share_a_weight(layers):
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight


def share_a_layer(layers):
    layers[1].mlp.gate_proj = layers[1].mlp.up_proj


def share_a_block(layers):
    layers[1] = layers[0]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize(
    ("share", "names"),
    [
        (share_a_weight, "model.layers.0.mlp.up_proj and model.layers.1.mlp.up_proj"),
        (share_a_layer, "model.layers.1.mlp.gate_proj and model.layers.1.mlp.up_proj"),
        (share_a_block, "model.layers.0.self_attn.q_proj and model.layers.1.self_attn.q_proj"),
    ],
)
def test_layers_that_share_a_weight_are_named(tiny, share, names, method):
    model = tiny()
    share(model.model.layers)
    with pytest.raises(ModelError, match=f"{names} share one weight"):
        qbench.quantize(model, method, Scheme(4, 16), TOKENS)


def test_a_shared_weight_is_seen_in_a_model_without_data(tiny):
    model = tiny().to("meta")
    require_own_weights(model)
    share_a_weight(model.model.layers)
    with pytest.raises(ModelError, match="share one weight"):
        require_own_weights(model)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (
            T5ForConditionalGeneration,
            T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=64),
            "a T5ForConditionalGeneration has an encoder beside its decoder",
        ),
        (
            BertForMaskedLM,
            BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=64),
            "a BertForMaskedLM fills gaps",
        ),
    ],
)
def test_a_model_that_is_no_decoder_is_refused(random_model, kind, config, message):
    with pytest.raises(ModelError, match=message):
        qbench.quantize(random_model(kind, config), "rtn", Scheme(4, 16))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"folder": None}, "folder=None is no path; give the folder of a saved model"),
        ({"folder": 3}, "folder=3 is no path"),
        ({"folder": b"saved"}, "folder=b'saved' is no path"),
        ({"dtype": None}, "unknown dtype None. Available: bfloat16, float16, float32"),
        ({"dtype": torch.float16}, "unknown dtype torch.float16. Did you mean 'float16'?"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used here"),
        ({"device": "tpu"}, "device='tpu' cannot be used here"),
        ({"device": None}, "device=None cannot be used here"),
        ({"device": "meta"}, "device='meta' cannot be used here"),
    ],
)
def test_what_cannot_be_loaded_is_refused(tmp_path, given, message):
    """Before the folder is even looked for."""
    with pytest.raises(ConfigError, match=message):
        qbench.load(**{"folder": tmp_path / "absent", **given})


def test_a_name_that_is_no_string_is_none():
    with pytest.raises(ConfigError, match="unknown method None"):
        qbench.get_method(None)
