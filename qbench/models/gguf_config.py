"""The configuration that transformers makes of a GGUF file, held against the file.

transformers' reader takes the metadata that stand in its table (`transformers.integrations.ggml`),
and leaves the rest at the defaults of its configuration. Here each of those is compared with what
the file says. Llama 3's stretched rope, a tensor of the file, is put into the configuration:

    rope_freqs.weight  float32 (head_dim/2,)  by what the plain frequencies are divided

With low_freq_factor 1 and high_freq_factor 4, as all published models have, the divisor of a
frequency that makes t turns in the original context is 1 / (s + (1 - s) / factor) with
s = (t - 1) / (4 - 1), limited to 0..1. Source: transformers, modeling_rope_utils.py,
`_compute_llama3_parameters`; llama.cpp, convert_hf_to_gguf.py, `LlamaModel`.
"""

from __future__ import annotations

import warnings
from math import isclose, pi
from typing import TYPE_CHECKING, Any

from qbench.errors import ModelError
from qbench.models.gguf_file import read_float32
from qbench.models.source import ModelSource

if TYPE_CHECKING:
    from qbench.files.gguf_header import Header

FREQUENCIES = "rope_freqs.weight"
# Metadata beside the table of transformers -> the entry of the config that has to say the same.
_SAME = {
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
# What does not change a number, or stands in the table of some architectures under another word.
_HARMLESS = (
    "attention.causal",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "context_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
    "vocab_size",
)
# Layers of the one size of a family whose attention is scaled by the width of a head as such, and
# not by its length: llama.cpp knows it by them (src/models/gemma2.cpp and gemma3.cpp).
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
_OWN_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss"}
_LOW, _HIGH = 1.0, 4.0


def completed(config: Any, source: ModelSource, header: Header) -> Any:
    """The same config, with the rope of the file. ModelError for what it cannot say."""
    tensors = {tensor.name: tensor for tensor in header.tensors}
    if FREQUENCIES in tensors:
        divisors = read_float32(source.path, tensors[FREQUENCIES])
        _stretch(config, divisors.astype("float64"), source)
    if header.metadata["general.architecture"] in _LARGEST_GEMMA:
        _scale_attention(config, header)
    _compare_metadata(config, source, header)
    return config


def tensors_left_out(model: Any, header: Header) -> list[str]:
    """Names of the tensors that transformers' reader has no place for, the rope's but.

    model: of transformers, without its weights. Empty where the reader tells by itself.
    """
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    except ImportError:
        GGUF_CONFIG_ARCHS = {}
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    architecture = header.metadata["general.architecture"]
    if architecture in GGUF_CONFIG_ARCHS:
        return []
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    known = set(get_gguf_hf_weights_map(model, processor)) | {FREQUENCIES, "output.weight"}
    names = [tensor.name for tensor in header.tensors]
    # stacks of experts are parameters without a name of their own in transformers
    return [name for name in names if not {name, name.removesuffix(".weight")} & known]


def _stretch(config: Any, divisors: Any, source: ModelSource) -> None:
    """Set Llama 3's rope. ModelError where the divisors are not those of one."""
    if (divisors == 1).all():
        return
    factor = round(float(divisors.max()), 3)  # they are float32, and factors few digits long
    head_dim = _head_dim(config)
    theta = _theta(config)
    if len(divisors) == head_dim // 2 and factor > 1:
        plain = [theta ** (-2 * i / head_dim) for i in range(len(divisors))]
        shares = [(1 / divisor - 1 / factor) / (1 - 1 / factor) for divisor in divisors.tolist()]
        for share, frequency in zip(shares, plain, strict=True):
            if 0.001 < share < 0.999:
                context = round(2 * pi * (share * (_HIGH - _LOW) + _LOW) / frequency)
                if _agrees(divisors, plain, factor, context):
                    _set_rope(config, theta, factor, context)
                    return
    raise ModelError(
        f"model {source.name!r}: {FREQUENCIES} stretches the rotary embedding in a way that is not "
        "Llama 3's, and transformers' reader of GGUF takes it for a plain one; give a folder with "
        "the model's safetensors"
    )


def _agrees(divisors: Any, plain: list[float], factor: float, context: int) -> bool:
    """Whether Llama 3's rope with this factor and original context has these divisors."""
    for divisor, frequency in zip(divisors.tolist(), plain, strict=True):
        turns = context * frequency / (2 * pi)
        share = min(max((turns - _LOW) / (_HIGH - _LOW), 0.0), 1.0)
        if not isclose(divisor, 1 / (share + (1 - share) / factor), rel_tol=1e-3):
            return False
    return True


def _set_rope(config: Any, theta: float, factor: float, context: int) -> None:
    rope = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": context,
    }
    if hasattr(config, "rope_parameters"):
        config.rope_parameters = {"rope_theta": theta, **rope}
    else:  # transformers 4
        config.rope_scaling = rope


def _scale_attention(config: Any, header: Header) -> None:
    """Set what the scores of Gemma's attention are divided by, the square of it."""
    largest = _LARGEST_GEMMA[header.metadata["general.architecture"]]
    if config.num_hidden_layers == largest:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    else:
        config.query_pre_attn_scalar = _head_dim(config)


def _compare_metadata(config: Any, source: ModelSource, header: Header) -> None:
    """ModelError for metadata that say something else than the config that was made of them."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    architecture = header.metadata["general.architecture"]
    taken = GGUF_CONFIG_MAPPING.get(_OWN_NAMES.get(architecture, architecture), {})
    unknown = []
    for key, value in header.metadata.items():
        prefix, _, name = key.partition(".")
        if prefix != architecture or taken.get(name) is not None:
            continue
        if name in ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"):
            if value not in ("none", 1.0) and architecture != "gpt-oss":
                raise _ignored(source, key, value, "a plain rotary embedding")
        elif name in _SAME:
            own = _own_value(config, _SAME[name])
            if own is None or not isclose(own, value, rel_tol=1e-5):
                raise _ignored(source, key, value, f"{_SAME[name]}={own}")
        elif name == "rope.dimension_count":
            turned = _head_dim(config) * _partial(config)
            if value != round(turned):
                raise _ignored(source, key, value, f"{turned:g}")
        elif name not in _HARMLESS and name not in taken:
            unknown.append(f"{key}={value}")
    if unknown:
        warnings.warn(
            f"model {source.name!r}: transformers' reader of GGUF does not take "
            f"{', '.join(sorted(unknown)[:5])}",
            stacklevel=4,
        )


def _ignored(source: ModelSource, key: str, value: Any, instead: str) -> ModelError:
    return ModelError(
        f"model {source.name!r}: the file says {key}={value!r}, and transformers' reader of GGUF "
        f"takes {instead}; give a folder with the model's safetensors"
    )


def _own_value(config: Any, name: str) -> Any:
    if name == "head_dim":
        return _head_dim(config)
    return _theta(config) if name == "rope_theta" else getattr(config, name, None)


def _head_dim(config: Any) -> int:
    head_dim = getattr(config, "head_dim", None)
    return int(head_dim or config.hidden_size // config.num_attention_heads)


def _theta(config: Any) -> float:
    rope: Any = getattr(config, "rope_parameters", None) or {}
    return float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)


def _partial(config: Any) -> float:
    """The part of a head that the rotary embedding turns."""
    rope: Any = getattr(config, "rope_parameters", None) or {}
    own = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None)
    return float(own or 1.0)
