"""Tiny models and a byte-level tokenizer, shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

os.environ.setdefault("TQDM_DISABLE", "1")
REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
COMMON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = COMMON | {"intermediate_size": 64, "num_key_value_heads": 1}
MIXED = {
    "head_dim": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES = {  # the class of the config and its values, of tiny decoders that differ in what their blocks are made of
    "llama": ("LlamaConfig", WIDE | {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", WIDE | {"sliding_window": 8}),
    "qwen2-biases": ("Qwen2Config", WIDE),
    "qwen3": ("Qwen3Config", WIDE | {"head_dim": 16}),
    "gemma": ("GemmaConfig", WIDE | {"head_dim": 16}),
    "gemma3-mixed-masks": ("Gemma3TextConfig", WIDE | MIXED),
    "phi3-fused": ("Phi3Config", WIDE | {"pad_token_id": 0}),
    "opt": ("OPTConfig", COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt2-conv1d": ("GPT2Config", GPT2),
    "mixtral-experts": ("MixtralConfig", WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


@pytest.fixture(scope="session")
def tokenizer():
    """One token per byte, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        bos_token="<bot>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny():
    """Makes random Llama models of two blocks; keywords change the config."""

    def make(seed: int = 0, **changes) -> LlamaForCausalLM:
        shape = {
            "vocab_size": 259,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
        }
        shape |= {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
        }
        config = LlamaConfig(
            **(shape | changes), bos_token_id=256, eos_token_id=257, pad_token_id=258
        )
        return randomized(LlamaForCausalLM, config, seed)

    return make


@pytest.fixture(scope="session")
def tiny_folder(tiny, tokenizer, tmp_path_factory):
    """A saved tiny model with its tokenizer, as a user's local folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny(hidden_size=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_data():
    """The folder with the real data sets; skips where it is not there."""
    if not REAL.is_dir():
        pytest.skip("the folder ../shared/data with the real data sets is not there")
    return REAL


def randomized(kind, config, seed: int = 0):
    """A model of a transformers class with random weights, sharper than the initialization, so that scores differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        for parameter in model.parameters():
            parameter.data *= 4
    return model.eval()


@pytest.fixture(scope="session")
def random_model():
    """`random_model(kind, config)`: a random model of any transformers class."""
    return randomized


@pytest.fixture(params=FAMILIES)
def family(request):
    """Makes random models of one family, the same every time; a test that asks for it runs for all families."""
    config, values = FAMILIES[request.param]

    def make():
        return randomized(
            transformers.AutoModelForCausalLM.from_config, getattr(transformers, config)(**values)
        )

    return make
