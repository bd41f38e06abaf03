"""The configuration that transformers makes of a GGUF file, held against the file.

transformers' reader takes the metadata that stand in its table (`transformers.integrations.ggml`),
and leaves the rest at the defaults of its configuration, which `gguf_metadata.py` compares with
what the file says. Put into the configuration are the size of a Qwen's heads, which that table
lacks, and Llama 3's stretched rope, a tensor of the file:

    rope_freqs.weight  float32 (head_dim/2,)  by what the plain frequencies are divided

With low_freq_factor 1 and high_freq_factor 4, as all published models have, the divisor of a
frequency that makes t turns in the original context is 1 / (s + (1 - s) / factor) with
s = (t - 1) / (4 - 1), limited to 0..1. Source: transformers, modeling_rope_utils.py,
`_compute_llama3_parameters`; llama.cpp, convert_hf_to_gguf.py, `LlamaModel`.
"""

from __future__ import annotations

from math import isclose, pi
from typing import TYPE_CHECKING, Any

from qbench.errors import ModelError
from qbench.models.gguf_file import read_float32
from qbench.models.gguf_metadata import compare_metadata, head_dim, rope_theta
from qbench.models.source import ModelSource

if TYPE_CHECKING:
    from qbench.files.gguf_header import Header

FREQUENCIES = "rope_freqs.weight"
# Layers of the one size of a family whose attention is scaled by the width of a head as such, and
# not by its length: llama.cpp knows it by them (src/models/gemma2.cpp and gemma3.cpp).
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
_HEADS_LEFT_OUT = ("qwen2", "qwen3")  # whose head_dim is not in the table of transformers
_LOW, _HIGH = 1.0, 4.0


def completed(config: Any, source: ModelSource, header: Header) -> Any:
    """The same config, with the file's heads and rope. ModelError for what it cannot say."""
    architecture = header.metadata["general.architecture"]
    size = header.metadata.get(f"{architecture}.attention.key_length")
    if architecture in _HEADS_LEFT_OUT and size and size != head_dim(config):
        config.head_dim = size
    tensors = {tensor.name: tensor for tensor in header.tensors}
    if FREQUENCIES in tensors:
        divisors = read_float32(source.path, tensors[FREQUENCIES])
        _stretch(config, divisors.astype("float64"), source)
    if architecture in _LARGEST_GEMMA:
        _scale_attention(config, header)
    compare_metadata(config, source, header)
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
    size = head_dim(config)
    theta = rope_theta(config)
    if len(divisors) == size // 2 and factor > 1:
        plain = [theta ** (-2 * i / size) for i in range(len(divisors))]
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
        config.query_pre_attn_scalar = head_dim(config)
