"""Models of other families than Llama, written as llama.cpp's converter writes them, and read."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from qbench.errors import ModelError
from qbench.models.loading import load_config, load_model
from qbench.models.source import find_model

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 278,
    "eos_token_id": 279,
    "pad_token_id": 279,
}
GEMMA = SHAPE | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
HEADS = {"attention.key_length": 32, "attention.value_length": 32, "attention.sliding_window": 8}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
SLIDING = {"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "attention.sliding_window_pattern": 6}
NEOX = {"attention.layer_norm_epsilon": 1e-5}
# The class, its config, the architecture, and metadata beside those that all have.
FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, rope_theta=1e6), "QWEN2", {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=128), "QWEN3", {}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**GEMMA), "GEMMA2", HEADS | CAPS),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA), "GEMMA3", HEADS | SLIDING),
    "starcoder2": (
        Starcoder2ForCausalLM,
        Starcoder2Config(**SHAPE, sliding_window=None),
        "STARCODER2",
        NEOX,
    ),
    "stablelm": (
        StableLmForCausalLM,
        StableLmConfig(**SHAPE),
        "STABLELM",
        NEOX | {"rope.dimension_count": 8, "use_parallel_residual": False},
    ),
}

pytestmark = pytest.mark.skipif(
    transformers.__version__ < "5", reason="transformers 4 reads GGUF tokenizers otherwise"
)


@pytest.fixture(autouse=True)
def untried(monkeypatch):
    """Without the process in which tokenizers are tried, which takes seconds a file."""
    monkeypatch.setattr("qbench.models.gguf_tokenizer.try_gguf_tokenizer", lambda *_: None)


def write(model, path, architecture, more):
    """The model in float32. llama.cpp stores the norms of Gemma as what they multiply with."""
    arch = gguf.MODEL_ARCH[architecture]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    for key, value in (metadata(model.config) | more).items():
        kind = gguf.GGUFValueType.get_type(value)
        writer.add_key_value(f"{gguf.MODEL_ARCH_NAMES[arch]}.{key}", value, kind)
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the"]
    words += [f"[PAD{i}]" for i in range(len(words), 278)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*words, "<s>", "</s>"])
    writer.add_token_types([1] * 258 + [5] * 20 + [3, 3])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(278)
    writer.add_eos_token_id(279)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    for name, tensor in model.named_parameters():  # a tied head is not among them
        offset = architecture.startswith("GEMMA") and name.endswith("norm.weight")
        numbers = np.ascontiguousarray((tensor.detach() + offset).numpy())
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def metadata(config):
    rope = getattr(config, "rope_parameters", None) or {}
    found = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "rope.freq_base": rope.get("rope_theta"),
    }
    return {key: value for key, value in found.items() if value is not None}


def random(family):
    cls, config, architecture, more = FAMILIES[family]
    torch.manual_seed(0)
    model = cls(config).eval()
    for parameter in model.parameters():
        parameter.data = 0.05 * torch.randn_like(parameter)
    return model, architecture, more


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_file_computes_as_the_model_that_was_written(family, tmp_path):
    expected, architecture, more = random(family)
    path = write(expected, tmp_path / "x.gguf", architecture, more)
    model, _ = load_model(find_model(str(path)), "float32")
    tokens = torch.arange(40)[None] * 7 % 270
    torch.testing.assert_close(model(tokens).logits, expected(tokens).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "family, more",
    [
        ("qwen2", {"pooling_type": 3, "expert_count": 0, "rope.scaling.type": "none"}),
        (
            "qwen3",
            {"attention.causal": True, "attention.sliding_window": 0, "rope.scale_linear": 1.0},
        ),
        ("gemma2", {"attention.sliding_window_pattern": 2, "attention.scale": 32**-0.5}),
    ],
)
def test_what_says_the_same_is_taken_in_silence(family, more, tmp_path, recwarn):
    model, architecture, own = random(family)
    path = write(model, tmp_path / "x.gguf", architecture, own | more)
    load_config(find_model(str(path)))
    assert not [str(warning.message) for warning in recwarn if "GGUF" in str(warning.message)]


@pytest.mark.parametrize(
    "family, change, message",
    [
        ("qwen3", {"attention.value_length": 32}, "value_length=32, .* takes head_dim=128"),
        ("qwen3", {"attention.key_length": 32}, "12 tensors are of another shape .*k_norm"),
        ("gemma2", {"attn_logit_softcapping": 20.0}, "takes attn_logit_softcapping=50.0"),
        ("starcoder2", {"rope.freq_base": 5e5}, "rope.freq_base=500000.0, .* rope_theta=10000.0"),
        ("stablelm", {"rope.dimension_count": 32}, "rope.dimension_count=32, .* takes 8"),
        ("gemma3", {"rope.freq_base_swa": 5e2}, "freq_base_swa=500.0, .* takes 10000.0"),
        (
            "gemma3",
            {"attention.sliding_window_pattern": 2},
            "sliding_window_pattern=2, .* takes a sliding window in 2 of 2 layers; give a folder",
        ),
        (
            "gemma3",
            {"attention.sliding_window_pattern": [True, False]},
            "sliding_window_pattern=.'2 entries'., .* takes nothing of it",
        ),
        (
            "gemma3",
            {"attention.sliding_window": 0},
            "sliding_window=0, .* sliding_window=0 in layers",
        ),
        ("gemma3", {"attention.scale": 0.5}, r"attention.scale=0.5, .* takes 0\.176"),
        ("gemma3", {"rope.scaling.attn_factor": 1.5}, "attn_factor=1.5, .* takes 1.0"),
        ("gemma2", {"rope.freq_base_swa": 5e2}, "freq_base_swa=500.0, .* takes 10000.0"),
        ("qwen3", {"attention.causal": False}, "attention.causal=False, .* takes True"),
        ("qwen2", {"attention.temperature_scale": 0.1}, "temperature_scale=.* takes nothing of it"),
        ("qwen2", {"rope.dimension_sections": [8, 4, 4, 0]}, "sections=.'4 entries'., .* nothing"),
        (
            "starcoder2",
            {"attention.layer_norm_rms_epsilon": 1e-3},
            "epsilon=0.001.*, .* takes 9.99",
        ),
    ],
)
def test_what_the_reader_leaves_at_its_defaults_is_compared(family, change, message, tmp_path):
    model, architecture, more = random(family)
    path = write(model, tmp_path / "x.gguf", architecture, more | change)
    with pytest.raises(ModelError, match=message):
        load_model(find_model(str(path)), "float32")
