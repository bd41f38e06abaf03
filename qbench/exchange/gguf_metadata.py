"""The metadata of a model in a GGUF file: which configs they can describe, their shape, their rope.

    context_length                      max_position_embeddings
    embedding_length                    hidden_size
    block_count                         num_hidden_layers
    feed_forward_length                 intermediate_size
    attention.head_count                num_attention_heads
    attention.head_count_kv             num_key_value_heads
    attention.key_length                head_dim, likewise value_length and rope.dimension_count
    rope.freq_base                      rope_theta
    attention.layer_norm_rms_epsilon    rms_norm_eps
    vocab_size                          vocab_size

all behind the name of the architecture and a dot. Llama 3's stretched rope is no metadata but a
tensor `rope_freqs.weight`, float32 (head_dim/2,): by what the plain frequencies are divided.
Source: llama.cpp, conversion/base.py, `TextModel`, and conversion/llama.py, `LlamaModel`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from gguf import GGUFWriter
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qbench.errors import ConfigError
from qbench.exchange.gguf_architectures import ARCHITECTURES, Architecture


@dataclass(frozen=True)
class _Rope:
    """The rotary embedding of a config. kind: `default`, `llama3` or another rope_type."""

    kind: str
    theta: float


def architecture_of(config: Any) -> Architecture:
    """How GGUF describes a model; ConfigError where it cannot.

    config: that of transformers.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise _not_described(f"model_type={config.model_type!r}", ARCHITECTURES)
    window = _window(config)
    if window is not None:
        raise _not_described(f"sliding_window={window}", ("none",))
    rope = _rope(config)
    if rope.kind not in architecture.ropes:
        raise _not_described(f"rope_type={rope.kind!r}", architecture.ropes)
    activation = getattr(config, "hidden_act", None)
    if activation != "silu":
        raise _not_described(f"hidden_act={activation!r}", ("silu",))
    return architecture


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


def _not_described(fact: str, described: Iterable[str]) -> ConfigError:
    """fact: what the config says. described: what it could say."""
    return ConfigError(
        f"a model with {fact} ({' or '.join(described)}) cannot be written as GGUF: its metadata, "
        "as their readers take them, describe only what stands in brackets; "
        "export to another format"
    )


def _window(config: Any) -> int | None:
    """How many tokens the attention of some layers sees; None where all of them see all."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    slides = getattr(config, "use_sliding_window", True) and "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) if slides else None


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
