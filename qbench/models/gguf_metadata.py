"""The metadata of a GGUF file, held against the configuration that transformers made of them.

transformers takes what stands in its table and leaves the rest at the defaults of its
configuration. Whatever else a file says under the name of its architecture is compared here with
what the configuration computes, and where it is not known, the file is refused. What llama.cpp's
converter writes: conversion/base.py, `TextModel.set_gguf_parameters`; how it is read:
src/llama-model.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import TYPE_CHECKING, Any

from qbench.errors import ModelError
from qbench.models.source import ModelSource

if TYPE_CHECKING:
    from qbench.files.gguf_header import Header

# Metadata beside the table of transformers -> what the config calls it.
_SAME = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "logit_scale": "logit_scale",
    "rope.freq_base": "rope_theta",
    "use_parallel_residual": "use_parallel_residual",
}
# What does not change a number, or is a shape of tensors, which are compared as such.
_HARMLESS = (
    "context_length",
    "feed_forward_length",
    "pooling_type",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",
)
# Of the one epsilon that a model's norms have, by the names of the families.
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
_OWN_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss"}
# Taken of the architectures whose config transformers makes by a function, not by its table.
_BY_FUNCTION = (
    "attention.head_count",
    "attention.head_count_kv",
    "block_count",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "full_attention_interval",
    "nextn_predict_layers",
    "rope.dimension_sections",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
)
_HAS_A_WINDOW = "gemma2"  # also where no key says so, of 4096 tokens in both programs
_ANYTHING = object()  # what a key may say where nothing is computed of it


def compare_metadata(config: Any, source: ModelSource, header: Header) -> None:
    """ModelError for metadata that say something else than the config that was made of them."""
    architecture = header.metadata["general.architecture"]
    taken = _taken(architecture)
    own = _own_values(config)
    window = f"{architecture}.attention.sliding_window"
    if architecture != _HAS_A_WINDOW and not header.metadata.get(window) and _slides(config):
        value = header.metadata.get(window)
        _require_same(source, window, value, f"sliding_window={config.sliding_window} in layers")
    for key, value in header.metadata.items():
        prefix, _, name = key.partition(".")
        if prefix == architecture and name not in taken:
            _require_same(source, key, value, _computed(config, own, name, value))
    for key, length in header.arrays.items():
        prefix, _, name = key.partition(".")
        if prefix == architecture and name not in (*taken, *_HARMLESS):
            _require_same(source, key, [f"{length} entries"], "nothing of it")


def head_dim(config: Any) -> int:
    """Numbers in one head of attention."""
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def rope_theta(config: Any, kind: str = "full_attention") -> float:
    """The base of the rotary embedding, of this kind of layers where they differ."""
    own = _rope(config, kind).get("rope_theta") or getattr(config, "rope_theta", None)
    return float(own or 10000.0)


def _taken(architecture: str) -> set[str]:
    """What transformers puts into the config of an architecture."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    except ImportError:
        GGUF_CONFIG_ARCHS = {}
    table = GGUF_CONFIG_MAPPING.get(_OWN_NAMES.get(architecture, architecture), {})
    names = {name for name, own in table.items() if own is not None}
    return names | set(_BY_FUNCTION if architecture in GGUF_CONFIG_ARCHS else ())


def _require_same(source: ModelSource, key: str, value: Any, instead: str | None) -> None:
    if instead is not None:
        raise ModelError(
            f"model {source.name!r}: the file says {key}={value!r}, and transformers' reader of "
            f"GGUF takes {instead}; give a folder with the model's safetensors"
        )


def _computed(config: Any, own: Mapping[str, Any], name: str, value: Any) -> str | None:
    """What is computed instead of what a key says; None where it is the same.

    own: of `_own_values`.
    """
    if name in _HARMLESS:
        return None
    if name == "attention.sliding_window_pattern" and type(value) is int:
        slides = _sliding_layers(config)
        if slides == [value == 0 or i % value < value - 1 for i in range(len(slides))]:
            return None
        return f"a sliding window in {sum(slides)} of {len(slides)} layers"
    if not value and (name not in own or name.startswith("rope.scal")):
        return None  # what llama.cpp takes where the key is missing
    if name not in own:
        return "nothing of it"
    if own[name] is _ANYTHING or _is_same(own[name], value):
        return None
    return f"{_SAME[name]}={own[name]}" if name in _SAME else f"{own[name]}"


def _is_same(own: Any, value: Any) -> bool:
    if isinstance(value, str) or isinstance(own, str):
        return bool(own == value)
    return isclose(own or 0, value, rel_tol=1e-5)  # without a window, a file may say 0


def _own_values(config: Any) -> dict[str, Any]:
    """What the config computes, by the name of the metadata that would say so."""
    epsilon = next((getattr(config, name) for name in _EPSILONS if hasattr(config, name)), None)
    kv_heads = getattr(config, "num_key_value_heads", None)
    own = {key: getattr(config, name, None) for key, name in _SAME.items()}
    own |= {
        "attention.causal": True,
        "attention.head_count_kv": kv_heads or getattr(config, "num_attention_heads", None),
        "attention.layer_norm_epsilon": epsilon,
        "attention.layer_norm_rms_epsilon": epsilon,
    }
    if getattr(config, "num_attention_heads", None):  # Mamba has none
        own |= {
            "attention.key_length": head_dim(config),
            "attention.value_length": head_dim(config),
            "attention.scale": _scale(config),
            "rope.dimension_count": round(head_dim(config) * _partial(config)),
            "rope.freq_base": rope_theta(config),
            "rope.freq_base_swa": rope_theta(config, "sliding_attention"),
            **_scaling(config),
        }
    return own


def _scaling(config: Any) -> dict[str, Any]:
    """What the metadata would say of how the rotary embedding is stretched."""
    rope = _rope(config)
    if rope.get("rope_type") == "yarn":
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rope.get("factor"),
            "rope.scaling.original_context_length": rope.get("original_max_position_embeddings"),
            "rope.scaling.yarn_beta_fast": rope.get("beta_fast", 32.0),
            "rope.scaling.yarn_beta_slow": rope.get("beta_slow", 1.0),
        }
    # Llama 3's is no key of the metadata, but a tensor.
    own: dict[str, Any] = {"rope.scaling.type": "none"}
    own |= dict.fromkeys(("rope.scaling.factor", "rope.scale_linear"), 1.0)
    own["rope.scaling.attn_factor"] = 1.0
    unused = ("ext_factor", "attn_factor", "beta_fast", "beta_slow", "log_multiplier")
    own |= dict.fromkeys((f"rope.scaling.yarn_{name}" for name in unused), _ANYTHING)
    own["rope.scaling.original_context_length"] = _ANYTHING
    return own


def _scale(config: Any) -> float:
    """What the scores of attention are multiplied with."""
    multiplier = getattr(config, "attention_multiplier", None)
    divisor = getattr(config, "query_pre_attn_scalar", None) or head_dim(config)
    return float(multiplier or divisor**-0.5)


def _sliding_layers(config: Any) -> list[bool]:
    """Whether a layer's attention sees a window only, by layer."""
    window = bool(getattr(config, "sliding_window", None))
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window and kind == "sliding_attention" for kind in kinds]


def _slides(config: Any) -> bool:
    """Whether layers are computed as those of a sliding window, be it one of 0 tokens."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return getattr(config, "sliding_window", None) is not None and "sliding_attention" in kinds


def _rope(config: Any, kind: str = "full_attention") -> Mapping[str, Any]:
    """The settings of the rotary embedding; transformers 4 has others of the sliding layers."""
    rope: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    local = getattr(config, "rope_local_base_freq", None)
    if local and kind == "sliding_attention":
        return {"rope_theta": local}
    own: Mapping[str, Any] = (rope or {}).get(kind, rope or {})
    return own


def _partial(config: Any) -> float:
    """The part of a head that the rotary embedding turns."""
    own = _rope(config).get("partial_rotary_factor")
    return float(own or getattr(config, "partial_rotary_factor", None) or 1.0)
