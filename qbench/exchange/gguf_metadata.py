"""The metadata of a Llama in a GGUF file: which models its keys describe, their shape, their rope.

    llama.context_length            max_position_embeddings
    llama.embedding_length          hidden_size
    llama.block_count               num_hidden_layers
    llama.feed_forward_length       intermediate_size
    llama.attention.head_count      num_attention_heads
    llama.attention.head_count_kv   num_key_value_heads
    llama.attention.key_length      head_dim, and likewise value_length and rope.dimension_count
    llama.rope.freq_base            rope_theta
    llama.attention.layer_norm_rms_epsilon  rms_norm_eps
    llama.vocab_size                vocab_size

Llama 3's stretched rope is no metadata but a tensor `rope_freqs.weight`, float32 (head_dim/2,): by
what the plain frequencies are divided. Source: llama.cpp, convert_hf_to_gguf.py, `LlamaModel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gguf import GGUFWriter
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qbench.errors import ConfigError


@dataclass(frozen=True)
class _Rope:
    """The rotary embedding of a config. kind: `default`, `llama3` or another rope_type."""

    kind: str
    theta: float


def check_architecture(config: Any) -> None:
    """ConfigError where the model is no Llama, or where metadata of `llama` cannot describe it.

    config: that of transformers.
    """
    if config.model_type not in ("llama", "mistral"):
        raise _not_described(f"model_type={config.model_type!r} (llama or mistral)")
    window = getattr(config, "sliding_window", None)
    if window:
        raise _not_described(f"sliding_window={window} (none)")
    rope = _rope(config)
    if rope.kind not in ("default", "llama3"):
        raise _not_described(f"rope_type={rope.kind!r} (default or llama3)")
    activation = getattr(config, "hidden_act", None)
    if activation != "silu":
        raise _not_described(f"hidden_act={activation!r} (silu)")


def add_config(writer: GGUFWriter, config: Any, name: str) -> None:
    """Add the keys above to a file. name: of the model."""
    head_dim = _head_dim(config)
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(_rope(config).theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def rope_divisors(config: Any) -> Tensor | None:
    """float32 (head_dim/2,): what the plain frequencies are divided by; None for a plain rope."""
    rope = _rope(config)
    if rope.kind == "default":
        return None
    head_dim = _head_dim(config)
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    stretched, _ = ROPE_INIT_FUNCTIONS[rope.kind](config, torch.device("cpu"))
    # plain frequencies are theta^-e, so plain / stretched = 1 / (theta^e * stretched)
    divisors = 1.0 / (rope.theta**exponents * stretched)
    return divisors.float()


def _not_described(fact: str) -> ConfigError:
    """fact: what the config says, and in brackets what could be described."""
    return ConfigError(
        f"a model with {fact} cannot be written as GGUF: the metadata of its architecture "
        "'llama', as its readers take it, describes only what stands in brackets; "
        "export to another format"
    )


def _rope(config: Any) -> _Rope:
    """From `rope_parameters`, or before transformers 5 from `rope_scaling` and `rope_theta`."""
    settings: Any = getattr(config, "rope_parameters", None)
    if not settings:
        settings = getattr(config, "rope_scaling", None) or {}
    kind = settings.get("rope_type", settings.get("type", "default"))
    theta = settings.get("rope_theta") or getattr(config, "rope_theta", 10000.0)
    return _Rope(kind, theta)


def _head_dim(config: Any) -> int:
    head_dim = getattr(config, "head_dim", None)
    return int(head_dim or config.hidden_size // config.num_attention_heads)
