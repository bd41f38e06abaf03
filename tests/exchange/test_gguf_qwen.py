"""Qwen2 and Qwen3 written as GGUF are the same to all readers; windows and the like are refused."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import qbench
from qbench import Scheme
from qbench.checkpoint.write_folder import unquantized_tensors
from qbench.errors import ConfigError
from qbench.exchange.gguf_model import export_model_gguf
from qbench.exchange.gguf_tokenizer import QWEN2
from qbench.export import export
from qbench.inspection.report import inspect
from qbench.models.loading import load_model
from qbench.models.source import find_model

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
MODELS = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 128}),
    "qwen3-tied": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 128, "tie_word_embeddings": True}),
}
# transformers' reader, left alone, takes these for heads of the usual size
OTHER_HEADS = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"head_dim": 32}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32}),
}
TOKENS = torch.arange(50)[None] * 7 % 280
TEXTS = ("they'LL say the other 2048's", "<|im_start|>the\n\n  thé 你好", "<think> naïve")


def made(cls, config, changes):
    """A random model, whose vectors are random, too."""
    generator = torch.Generator().manual_seed(0)
    model = cls(config(**(SHAPE | changes))).eval()
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def tokenizer():
    """A byte-level BPE that splits and composes a text as Qwen's do."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ã", "©")]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    built = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    built.normalizer, built.decoder = NFC(), decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>")
    built.add_special_tokens([AddedToken(text, special=True) for text in special])
    built.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token=special[0])


def written(model, path, bits=4):
    """The file, with the blocks of the model quantized, or dense where bits is 0."""
    weights = qbench.quantize(model, "rtn", Scheme(bits, 32, True)).weights if bits else {}
    rest = unquantized_tensors(model, weights)
    return export_model_gguf(model.config, tokenizer(), weights, rest.items(), path)


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


@pytest.fixture
def untried(monkeypatch):
    """Without the process in which tokenizers are tried, which takes seconds a file."""
    if transformers.__version__ < "5":
        pytest.skip("transformers 4 reads GGUF tokenizers otherwise")
    monkeypatch.setattr("qbench.models.gguf_tokenizer.try_gguf_tokenizer", lambda *_: None)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bits", [0, 4], ids=["dense", "Q4_0"])
def test_transformers_reads_the_same_model(tmp_path, name, bits):
    model = made(*MODELS[name])
    path = written(model, tmp_path / "tiny.gguf", bits)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).eval()
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(state[key], tensor) and tensor.any(), key
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    "models, name",
    [(MODELS, "qwen2"), (MODELS, "qwen3-tied"), (OTHER_HEADS, "qwen2"), (OTHER_HEADS, "qwen3")],
    ids=["qwen2", "qwen3-tied", "qwen2-other-heads", "qwen3-other-heads"],
)
@pytest.mark.usefixtures("untried")
def test_our_reader_takes_the_same_model_and_tokenizer(tmp_path, models, name):
    model = made(*models[name])
    path = written(model, tmp_path / "tiny.gguf")
    read, again = load_model(find_model(str(path)), "float32")
    assert torch.equal(logits(read), logits(model))
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer()(text)["input_ids"]
    found = inspect(path)
    assert (found.quantized_layers, found.bits_per_weight["total"]) == (14, 4.5)
    assert found.nbytes == sum(item.nbytes for item in found.items)


def test_the_file_is_what_llama_cpp_asks_for(tmp_path):
    model = made(*MODELS["qwen2"])
    reader = gguf.GGUFReader(written(model, tmp_path / "tiny.gguf", bits=0))
    found = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "qwen2",
        "qwen2.block_count": 2,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.attention.key_length": 16,
        "qwen2.rope.freq_base": 1e6,
        "tokenizer.ggml.pre": "qwen2",
    }
    assert {name: found[name] for name in expected} == expected
    assert not [name for name in found if name.startswith("llama.")]
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    state = model.state_dict()
    for own, target in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v")):
        for part in ("weight", "bias"):  # the rows in the order of transformers
            rows = state[f"model.layers.1.self_attn.{own}.{part}"].numpy()
            assert np.array_equal(stored[f"blk.1.{target}.{part}"], rows)


def test_the_norms_of_a_head_are_named_as_llama_cpp_names_them(tmp_path):
    reader = gguf.GGUFReader(written(made(*MODELS["qwen3"]), tmp_path / "tiny.gguf", bits=0))
    assert reader.fields["general.architecture"].contents() == "qwen3"
    names = {tensor.name.removeprefix("blk.0.") for tensor in reader.tensors}
    assert {"attn_q_norm.weight", "attn_k_norm.weight"} < names
    assert not [name for name in names if name.endswith(".bias")]


@pytest.mark.parametrize("models", [MODELS, OTHER_HEADS], ids=["usual-heads", "other-heads"])
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_an_export_is_proven(tmp_path, models, name):
    quantized = qbench.quantize(
        made(*models[name]), "rtn", Scheme(4, 32, True), tokenizer=tokenizer()
    )
    own = quantized.save(tmp_path / "own")
    assert export(own, "gguf", tmp_path / "tiny.gguf", verify=True).is_file()


@pytest.mark.parametrize("config", [Qwen2Config, Qwen3Config])
@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            r"sliding_window=8 \(none\)",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}},
            r"rope_type='yarn' \(default\)",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 1e6,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
            r"rope_type='llama3' \(default\)",
        ),
        ({"hidden_act": "gelu"}, r"hidden_act='gelu' \(silu\)"),
    ],
    ids=["window", "yarn", "llama3", "gelu"],
)
def test_what_cannot_be_described_is_refused(tmp_path, config, changes, message):
    with pytest.raises(ConfigError, match=message):
        export_model_gguf(config(**(SHAPE | changes)), tokenizer(), {}, [], tmp_path / "tiny.gguf")


def test_a_window_that_no_layer_has_is_none(tmp_path):
    unused = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    model = made(Qwen2ForCausalLM, Qwen2Config, unused)
    path = written(model, tmp_path / "tiny.gguf", bits=0)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).eval()
    assert torch.equal(logits(read), logits(model))


def test_biases_that_the_architecture_lacks_are_refused(tmp_path):
    model = made(Qwen3ForCausalLM, Qwen3Config, {"attention_bias": True, "head_dim": 16})
    with pytest.raises(ConfigError, match=r"'qwen3' lacks \['blk.0.attn_k.bias', .* of this model"):
        written(model, tmp_path / "tiny.gguf", bits=0)
    model = made(*MODELS["qwen2"])
    rest = [(name, t) for name, t in model.state_dict().items() if "k_proj.bias" not in name]
    with pytest.raises(ConfigError, match=r"the model lacks \['blk.0.attn_k.bias', 'blk.1"):
        export_model_gguf(model.config, tokenizer(), {}, rest, tmp_path / "tiny.gguf")


@pytest.mark.slow
@pytest.mark.usefixtures("untried", "without_pictures")
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_file_is_judged(command, tmp_path, name):
    path = written(made(*MODELS[name]), tmp_path / "tiny.gguf")
    asked = ("--data", "mini", "--tasks", "wikitext", "--dtype", "float32")
    limits = ("--set", "wikitext.length=64", "--set", "wikitext.limit=2")
    code, text, said = command("eval", path, *asked, *limits)
    assert code == 0 and "perplexity" in text, said
