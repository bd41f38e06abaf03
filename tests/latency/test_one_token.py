"""A token by few kernels: what is written is what the model's own modules write."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

import qbench
from cuda_on_cpu import functions_on_cpu, needs_compiler
from families import FAMILIES, family_model
from qbench import Scheme
from qbench.checkpoint.packed_linear import pack
from qbench.kernels.gpu.cuda import bit_serial, one_row, products
from qbench.kernels.gpu.cuda.choice import Gpu
from qbench.kernels.gpu.cuda.one_row import OneRow
from qbench.latency import joined, one_token
from qbench.latency.decoding import Decoder
from qbench.latency.end_to_end import prompt_of

OF_THE_KIND = {
    "llama": FAMILIES["llama"],
    "llama-heads": ("LlamaConfig", FAMILIES["llama"][1] | {"num_key_value_heads": 2}),
    "mistral": ("MistralConfig", FAMILIES["llama"][1]),
    "qwen2": FAMILIES["qwen2-biases"],
}


def twins_of(config, values):
    """(packed, dense): the same weights, rounded to 3 bits."""
    quantized = qbench.quantize(family_model(config, values), "rtn", Scheme(3, 32))
    packed = family_model(config, values)
    pack(packed, quantized.weights)
    return packed, quantized.model


def written(model, fusion, tokens=9):
    """The decoder, after it has written twice, and what it wrote."""
    decoder = Decoder(model, prompt_of(7, 64), tokens, fusion)
    texts = []
    for _ in range(2):
        decoder.read()
        decoder.write()
        texts.append(decoder.written.tolist())
    assert texts[0] == texts[1]
    return decoder, texts[0]


@pytest.fixture
def calls(monkeypatch):
    """Counts tokens that are written by few kernels."""
    counted = []
    write = one_token.OneToken.write

    def counting(self):
        counted.append(self)
        write(self)

    monkeypatch.setattr(one_token.OneToken, "write", counting)
    return counted


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "dense"])
@pytest.mark.parametrize("family", OF_THE_KIND)
def test_tokens_are_those_of_the_models_own_modules(family, packed, calls):
    model = twins_of(*OF_THE_KIND[family])[not packed]
    ids = prompt_of(7, 64)
    before = model(ids).logits
    _, expected = written(model, "none")
    assert not calls
    decoder, text = written(model, "token")
    assert decoder.refused is None and decoder.difference < 1e-5 and len(calls) == 1 + 2 * 8
    assert text == expected and len(set(text[0])) > 2
    assert torch.equal(model(ids).logits, before), "the model computes what it did"


@pytest.mark.parametrize(
    "family, reason",
    [
        ("qwen3", "has k_norm, k_proj, o_proj, q_norm, q_proj, v_proj; models of the Llama kind"),
        ("gemma", "is no norm as Llama has it: variance_epsilon is None"),
        (
            "phi3-fused",
            "a Phi3Attention has o_proj, qkv_proj; models of the Llama kind have q_proj",
        ),
        ("gpt2-conv1d", "models of the Llama kind have model and lm_head there"),
        ("mixtral-experts", "a MixtralSparseMoeBlock has experts, gate; models of the Llama kind"),
    ],
)
def test_other_models_write_by_their_own_modules(family, reason):
    model = family_model(*FAMILIES[family])
    _, expected = written(model, "none")
    decoder, text = written(model, "token")
    assert reason in decoder.refused and text == expected


def test_a_model_that_only_looks_like_a_llama_is_refused():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = family_model(*OF_THE_KIND["llama"])
    layer = model.model.layers[1].mlp.down_proj
    layer.__class__ = Doubled  # called as it is, and so right
    assert written(model, "token")[0].refused is None
    model.model.layers[0].mlp.act_fn = torch.nn.GELU()
    _, expected = written(model, "none")
    decoder, text = written(model, "token")
    assert "is computed in another way than a Llama: logits are" in decoder.refused
    assert text == expected


def test_angles_that_depend_on_other_places_are_refused():
    def dynamic(like, places):
        angles = places[..., None].float() / (1 + places.max()) * torch.ones(4)
        return angles.cos(), angles.sin()

    with pytest.raises(qbench.errors.ConfigError, match="depend on the number of places"):
        one_token._rotary(dynamic, torch.zeros(1), 16)


def test_dense_layers_share_the_joined_weight():
    layers = [torch.nn.Linear(8, out, bias=out == 4) for out in (4, 6)]
    expected = copy.deepcopy(layers)
    with torch.no_grad():
        product = joined.joined(layers, torch.float32)
        x = torch.randn(1, 8)
        y = torch.cat([layer(x) for layer in expected], 1)
        torch.testing.assert_close(product.run(x), y)
        torch.testing.assert_close(torch.cat([layer(x) for layer in layers], 1), y)
    first, second = (layer.weight for layer in layers)
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert second.data_ptr() == first.data_ptr() + first.nbytes, "one below the other"


WIDE = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
}


@pytest.fixture
def emulated(monkeypatch, tmp_path_factory):
    """The kernels of Hopper, run on the CPU."""
    monkeypatch.setattr(products, "gpu_of", lambda device: Gpu("", 90, 132))
    monkeypatch.setattr(joined, "choose", lambda *arguments: SimpleNamespace(name="cuda"))
    monkeypatch.setattr(Decoder, "_row", lambda self: OneRow())
    caches = (bit_serial._bit_planes, one_row._functions)
    with functions_on_cpu(tmp_path_factory, (bit_serial, one_row), caches):
        yield


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("config, head", [("LlamaConfig", 128), ("Qwen2Config", 64)])
def test_the_kernels_write_what_the_modules_write(emulated, config, head):
    values = WIDE | {"head_dim": head, "num_attention_heads": 256 // head}
    model = family_model(config, values)
    quantized = qbench.quantize(model, "rtn", Scheme(3, 128))
    packed = family_model(config, values)
    pack(packed, quantized.weights)
    for model in (packed.half(), quantized.model.half()):
        _, expected = written(model, "none", 3)
        decoder, text = written(model, "token", 3)
        assert decoder.refused is None
        assert text == expected and len(set(text[0])) > 2
