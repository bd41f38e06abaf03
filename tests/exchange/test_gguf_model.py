"""A model written as GGUF is the same to transformers' reader; what GGUF cannot say is refused."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, NFD
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

from qbench.checkpoint.folder import load_checkpoint
from qbench.checkpoint.write_folder import save_checkpoint
from qbench.errors import ConfigError, StoreError
from qbench.exchange.gguf_model import export_model_gguf
from qbench.exchange.gguf_tokenizer import LLAMA3, QWEN2, TEKKEN
from qbench.export import export
from qbench.formats import Binary, Dense, Uniform
from qbench.models.blocks import linears

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}"
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def byte_level(pre=WORDS, merges=(("t", "h"), ("th", "e"), ("Ġ", "the")), normalizer=None):
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(
        BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=list(merges))
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<s>", "</s>", "<|im_start|>")]
    )
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **special)


def split(regex):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), BYTES])


def quantize(model, bits=4, groups=2, symmetric=False):
    """The weights by name: random codes in all linear layers of the blocks.

    The model gets their values.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, layer in linears(model).items():
        if name == "lm_head":
            continue
        shape = layer.weight.shape
        codes = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
        zero = torch.randint(0, 2**bits, (shape[0], groups), generator=generator, dtype=torch.uint8)
        scale = (0.2 * torch.rand((shape[0], groups), generator=generator) / 2**bits).half()
        weights[name] = Uniform.from_codes(codes, scale, None if symmetric else zero, bits)
        layer.weight.data = weights[name].dequantize()
    return weights


def others(model, weights):
    return [
        (name, t)
        for name, t in model.state_dict().items()
        if name.removesuffix(".weight") not in weights
    ]


@pytest.fixture
def llama(tiny):
    """Two blocks, grouped queries, 64 inputs."""

    def make(**changes):
        shape = {
            "vocab_size": 270,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
        }
        return tiny(**(shape | {"num_key_value_heads": 2} | changes))

    return make


def read(path, dtype=torch.float32):
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return AutoModelForCausalLM.from_pretrained(
        **source, dtype=dtype
    ).eval(), AutoTokenizer.from_pretrained(**source)


@pytest.mark.parametrize(
    "changes, bits, symmetric",
    [
        ({}, 4, True),
        ({"tie_word_embeddings": True, "rope_theta": 50000.0}, 4, False),
        ({"head_dim": 32, "num_hidden_layers": 3, "rms_norm_eps": 1e-5}, 8, True),
    ],
    ids=["Q4_0", "Q5_0-tied", "Q8_0-wide-heads"],
)
def test_transformers_reads_the_same_model(llama, tmp_path, changes, bits, symmetric):
    model, tokenizer = llama(**changes), byte_level()
    weights = quantize(model, bits, symmetric=symmetric)
    path = export_model_gguf(
        model.config, tokenizer, weights, others(model, weights), tmp_path / "new" / "tiny.gguf"
    )
    assert [file.name for file in path.parent.iterdir()] == ["tiny.gguf"]
    again, _ = read(path)
    state = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    tokens = torch.arange(50)[None] * 5 % 270
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_folder_in_half_precision_is_proven_by_its_exact_weights(llama, tmp_path, dtype):
    model = llama()
    weights = quantize(model)
    folder = save_checkpoint(tmp_path / "own", model.to(dtype), byte_level(), weights, {}, {})
    path = export(folder, "gguf", tmp_path / "tiny.gguf", verify=True)
    with torch.no_grad():
        tokens = torch.arange(50)[None] * 5 % 270
        expected = load_checkpoint(folder, "float32", packed=False).model(tokens).logits
        torch.testing.assert_close(read(path)[0](tokens).logits, expected)


@pytest.mark.skipif(
    transformers.__version__ < "5", reason="transformers 4 adds <s> and a space to a GGUF tokenizer"
)
def test_transformers_reads_the_same_tokenizer(llama, tmp_path):
    model, tokenizer = llama(), byte_level()
    path = export_model_gguf(model.config, tokenizer, {}, others(model, {}), tmp_path / "tiny.gguf")
    again = read(path)[1]
    for text in (
        "the other theme, 2048 times",
        "<s> the <|im_start|>xthe</s>",
        "naïve\n\n  thé 你好",
    ):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert again.decode(again(text)["input_ids"]) == text
    chat = [{"role": "user", "content": "the"}]
    assert again.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(
        chat, tokenize=False
    )


def test_the_metadata_is_what_llama_cpp_asks_for(llama, tmp_path):
    model, tokenizer = llama(), byte_level()
    weights = quantize(model, symmetric=True)
    path = export_model_gguf(
        model.config, tokenizer, weights, others(model, weights), tmp_path / "tiny.gguf"
    )
    reader = gguf.GGUFReader(path)
    found = {name: field.contents() for name, field in reader.fields.items()}
    expected = {"general.name": "tiny", "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_0}
    expected |= {
        "llama.rope.dimension_count": 16,
        "llama.attention.key_length": 16,
        "llama.vocab_size": 270,
    }
    expected |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 259,
    }
    expected |= {"tokenizer.ggml.eos_token_id": 260, "tokenizer.ggml.padding_token_id": 260}
    expected |= {"tokenizer.ggml.add_eos_token": False}
    expected |= {"tokenizer.chat_template": TEMPLATE, "general.quantization_version": 2}
    assert {name: found[name] for name in expected} == expected
    assert "tokenizer.ggml.add_bos_token" not in found, "its settings say nothing of it"
    types = found["tokenizer.ggml.token_type"]
    assert types[256:] == [1, 1, 1, 3, 3, 3, 4] + [5] * 7 and set(types[:256]) == {1}
    assert found["tokenizer.ggml.merges"] == ["t h", "th e", "Ġ the"]
    assert found["tokenizer.ggml.tokens"][262:264] == ["<think>", "[PAD263]"]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert (
        kinds["blk.1.attn_k.weight"] == "Q4_0"
        and kinds["output.weight"] == kinds["output_norm.weight"] == "F32"
    )


@pytest.mark.parametrize("dtype, kind", [(torch.float16, "F16"), (torch.bfloat16, "BF16")])
def test_the_rest_keeps_its_type_except_vectors(llama, tmp_path, dtype, kind):
    model = llama().to(dtype)
    layer = "model.layers.0.self_attn.q_proj"
    dense = {layer: Dense(model.get_submodule(layer).weight.data)}
    path = export_model_gguf(
        model.config, byte_level(), dense, others(model, dense), tmp_path / "tiny.gguf"
    )
    tensors = gguf.GGUFReader(path).tensors
    assert {t.tensor_type.name for t in tensors if len(t.shape) > 1} == {kind}
    assert {t.tensor_type.name for t in tensors if len(t.shape) == 1} == {"F32"}
    state = read(path, dtype)[0].state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_the_rope_of_llama_3_is_written_as_divisors(llama, tmp_path):
    stretch = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = llama(head_dim=32, rope_scaling={"rope_type": "llama3"} | stretch)
    path = export_model_gguf(
        model.config, byte_level(), {}, others(model, {}), tmp_path / "tiny.gguf"
    )
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}[
        "rope_freqs.weight"
    ]
    plain = [10000.0 ** (-2 * i / 32) for i in range(16)]
    expected = []
    for turns in (
        64 * frequency / (2 * math.pi) for frequency in plain
    ):  # within the original context
        share = min(max((turns - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        expected.append(1 / (share + (1 - share) / 8.0))
    np.testing.assert_allclose(stored, expected, rtol=1e-5)
    assert stored[0] == pytest.approx(1) and stored[-1] == pytest.approx(8)


def test_rows_of_a_head_are_paired_as_llama_cpp_rotates_them(llama, tmp_path):
    model = llama()
    path = export_model_gguf(
        model.config, byte_level(), {}, others(model, {}), tmp_path / "tiny.gguf"
    )
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    for name, target in (("q_proj", "attn_q"), ("k_proj", "attn_k")):
        rows = model.state_dict()[f"model.layers.0.self_attn.{name}.weight"].numpy()
        order = [
            16 * (r // 16) + r % 16 // 2 + 8 * (r % 2) for r in range(len(rows))
        ]  # heads of 16 rows
        assert np.array_equal(stored[f"blk.0.{target}.weight"], rows[order])


@pytest.mark.parametrize(
    "pre, normalizer, name",
    [
        (WORDS, None, "gpt-2"),
        (
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WORDS]),
            None,
            "smollm",
        ),
        (split(LLAMA3), None, "llama-bpe"),
        (split(TEKKEN), None, "tekken"),
        (split(QWEN2), None, "qwen2"),
        (split(QWEN2), NFC(), "qwen2"),
    ],
    ids=["gpt-2", "smollm", "llama-bpe", "tekken", "qwen2", "qwen2-composed"],
)
def test_splits_are_recognized(llama, tmp_path, pre, normalizer, name):
    model, tokenizer = llama(), byte_level(pre, normalizer=normalizer)
    path = export_model_gguf(model.config, tokenizer, {}, others(model, {}), tmp_path / "tiny.gguf")
    assert gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == name


@pytest.mark.parametrize(
    "tokenizer, message",
    [
        (
            byte_level(split(r"\w+")),
            r"splits text by \['Split', 'ByteLevel'\] .* known are the splits of gpt-2, smollm",
        ),
        (
            byte_level(pre_tokenizers.Whitespace()),
            "a BPE tokenizer with the pre-tokenizer Whitespace cannot",
        ),
        (byte_level(merges=()), "only byte-level BPE with merges can"),
        (byte_level(normalizer=NFC()), "normalizer NFC, for which no name .* NFC before .* qwen2;"),
        (byte_level(split(QWEN2), normalizer=NFD()), "normalizer NFD, for which no name"),
    ],
    ids=["regex", "words", "no-merges", "normalizer", "other-normalizer"],
)
def test_other_tokenizers_are_refused(llama, tmp_path, tokenizer, message):
    model = llama()
    with pytest.raises(ConfigError, match=message):
        export_model_gguf(model.config, tokenizer, {}, others(model, {}), tmp_path / "tiny.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sliding_window": 4096}, r"sliding_window=4096 \(none\)"),
        ({"hidden_act": "gelu"}, r"hidden_act='gelu' \(silu\)"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            r"rope_type='linear'",
        ),
        ({"vocab_size": 262}, "has the token '<think>' with id 262, and the model embeds only 262"),
    ],
)
def test_other_architectures_are_refused(llama, tmp_path, changes, message):
    model = llama(vocab_size=changes.get("vocab_size", 270))
    for name, value in changes.items():
        setattr(model.config, name, value)
    with pytest.raises(ConfigError, match=message):
        export_model_gguf(model.config, byte_level(), {}, others(model, {}), tmp_path / "tiny.gguf")


def test_other_model_types_are_refused(tmp_path):
    message = (
        r"a model with model_type='qwen3_moe' \(llama or mistral or qwen2 or qwen3\) cannot be "
        "written as GGUF: its metadata, .* what stands in brackets; export to another format"
    )
    with pytest.raises(ConfigError, match=message):
        export_model_gguf(Qwen3MoeConfig(), byte_level(), {}, [], tmp_path / "tiny.gguf")


def test_tensors_that_are_no_llamas_are_refused(llama, tmp_path):
    model, path = llama(), tmp_path / "tiny.gguf"
    rest = others(model, {})
    with pytest.raises(
        ConfigError,
        match=r"lacks nothing of this model, and the model lacks \['blk.0.attn_norm.weight'\]",
    ):
        kept = [pair for pair in rest if pair[0] != "model.layers.0.input_layernorm.weight"]
        export_model_gguf(model.config, byte_level(), {}, kept, path)
    with pytest.raises(ConfigError, match=r"lacks \['blk.1.attn_q.bias'\] of this model"):
        export_model_gguf(
            model.config,
            byte_level(),
            {},
            [*rest, ("model.layers.1.self_attn.q_proj.bias", torch.zeros(64))],
            path,
        )
    with pytest.raises(ConfigError, match="the tensor 'adapter.weight' has no name"):
        export_model_gguf(
            model.config, byte_level(), {}, [*rest, ("adapter.weight", torch.zeros(1))], path
        )
    with pytest.raises(
        ConfigError, match="model.embed_tokens.weight is torch.float64; GGUF gets float32"
    ):
        export_model_gguf(
            model.config,
            byte_level(),
            {},
            [("model.embed_tokens.weight", torch.zeros(1).double())],
            path,
        )
    model.config.vocab_size = 300
    with pytest.raises(
        ConfigError, match="the embedding has 270 rows and the config says vocab_size=300"
    ):
        export_model_gguf(model.config, byte_level(), {}, rest, path)


def test_weights_that_gguf_lacks_are_refused_by_name(llama, tmp_path):
    model, name = llama(), "model.layers.0.mlp.up_proj"
    weights = quantize(model)
    binary = weights | {name: Binary.from_uniform(weights[name])}
    with pytest.raises(
        ConfigError, match=f"{name}: GGUF has no type for weights of the format 'binary'"
    ):
        export_model_gguf(
            model.config, byte_level(), binary, others(model, weights), tmp_path / "tiny.gguf"
        )
    narrow = weights | {name: quantize(llama(), groups=4)[name]}
    with pytest.raises(ConfigError, match=f"{name}: group_size=16 is not a multiple of 32"):
        export_model_gguf(
            model.config, byte_level(), narrow, others(model, weights), tmp_path / "tiny.gguf"
        )


def test_a_file_that_cannot_be_written_leaves_nothing(llama, tmp_path):
    model = llama()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        export_model_gguf(
            model.config, byte_level(), {}, others(model, {}), tmp_path / "file" / "tiny.gguf"
        )
    (tmp_path / "tiny.gguf").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        export_model_gguf(model.config, byte_level(), {}, others(model, {}), tmp_path / "tiny.gguf")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "tiny.gguf"]
