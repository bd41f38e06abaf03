"""A whole model as one GGUF file of the architecture `llama`, for llama.cpp, and for transformers' `gguf_file`.

Source: llama.cpp, convert_hf_to_gguf.py, `LlamaModel` (metadata, names, the order of the rows of q
and k).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.exchange.gguf import blocks
from qbench.exchange.gguf_tokenizer import add_tokenizer
from qbench.files.atomic import write_whole
from qbench.formats import Dense, Uniform

Encoded = tuple[
    Any, NDArray[Any]
]  # the type of GGUF, and the rows: numbers, or uint8 where numpy lacks the type
KINDS = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}
LAYERS = (
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "attn_norm",
    "ffn_norm",
)


def export_model_gguf(
    config: Any,
    tokenizer: Any,
    quantized: Mapping[str, WeightFormat],
    others: Iterable[tuple[str, Tensor]],
    path: Path,
) -> Path:
    """Write a Llama, or a Mistral without a window, as the GGUF file `path`: whole or not at all.

    config, tokenizer: those of transformers; the tokenizer a byte-level BPE. quantized: layer name
    -> weight; uniform weights as the smallest type of GGUF that holds them exactly, dense ones as
    they are. others: (name, tensor) of the rest of the state dict, in float32, float16 or bfloat16,
    kept so; vectors become float32, which llama.cpp wants. Llama 3's stretched rope is written as
    llama.cpp reads it; transformers' reader takes it for a plain one. ConfigError, naming the
    layer, where GGUF or the architecture cannot say the same; StoreError where it cannot be
    written. Everything is held in memory once.
    """
    _check_architecture(config)
    tensors = dict(_encoded_tensors(config, quantized, others))
    _check_names(config, tensors)
    tensors |= _rope_divisors(config)
    writer = GGUFWriter(None, "llama")
    _add_config(writer, config, path.stem)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    writer.add_file_type(_file_type(tensors))
    writer.add_quantization_version(GGML_QUANT_VERSION)
    for name, (kind, rows) in tensors.items():
        writer.add_tensor(name, rows, raw_dtype=kind)
    write_whole(path, lambda part: _write(writer, part))
    return path


def _check_architecture(config: Any) -> None:
    """ConfigError where the model is no Llama, or where metadata of `llama` cannot describe it."""
    rope = _rope(config)
    found = {
        f"model_type={config.model_type!r} (llama or mistral)": config.model_type
        not in ("llama", "mistral"),
        f"sliding_window={getattr(config, 'sliding_window', None)} (none)": getattr(
            config, "sliding_window", None
        ),
        f"rope_type={rope['rope_type']!r} (default or llama3)": rope["rope_type"]
        not in ("default", "llama3"),
        f"hidden_act={getattr(config, 'hidden_act', None)!r} (silu)": getattr(
            config, "hidden_act", None
        )
        != "silu",
    }
    wrong = [what for what, is_wrong in found.items() if is_wrong]
    if wrong:
        raise ConfigError(
            f"a model with {wrong[0]} cannot be written as GGUF: the metadata of its architecture 'llama', as its "
            "readers take it, describes only what stands in brackets; export to another format"
        )


def _rope(config: Any) -> dict[str, Any]:
    """rope_type and rope_theta: in `rope_parameters`, or before transformers 5 in `rope_scaling` and `rope_theta`."""
    stated = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = stated.get("rope_theta") or getattr(config, "rope_theta", 10000.0)
    return {
        "rope_type": stated.get("rope_type", stated.get("type", "default")),
        "rope_theta": theta,
    }


def _head_dim(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _rope_divisors(config: Any) -> dict[str, Encoded]:
    """What llama3's rope divides the plain frequencies by: float32 (head_dim/2,). Nothing where the rope is plain."""
    rope = _rope(config)
    if rope["rope_type"] == "default":
        return {}
    exponents = torch.arange(0, _head_dim(config), 2).float() / _head_dim(config)
    stretched, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    divisors = 1.0 / (rope["rope_theta"] ** exponents * stretched)
    return {"rope_freqs.weight": (GGMLQuantizationType.F32, divisors.float().numpy())}


def _add_config(writer: GGUFWriter, config: Any, name: str) -> None:
    head = _head_dim(config)
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _encoded_tensors(
    config: Any, quantized: Mapping[str, WeightFormat], others: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Encoded]]:
    """(name in GGUF, encoded tensor) of everything; a head that is tied to the embedding is left out."""
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    encoded = [
        (f"{layer}.weight", _encode_weight(layer, weight)) for layer, weight in quantized.items()
    ]
    plain = (
        (name, _encode(name, tensor))
        for name, tensor in others
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    )
    for source in (encoded, plain):
        for name, (kind, rows) in source:
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise ConfigError(
                    f"the tensor {name!r} has no name in GGUF's architecture 'llama'; {_ELSEWHERE}"
                )
            count = heads.get(target.split(".")[-2])
            yield target, (kind, rows if count is None else _halves_to_pairs(rows, count))


_ELSEWHERE = "the model is no plain Llama; export to another format"


def _encode_weight(layer: str, weight: WeightFormat) -> Encoded:
    if isinstance(weight, Dense):
        return _encode(layer, weight.weight)
    if not isinstance(weight, Uniform):
        raise ConfigError(
            f"{layer}: GGUF has no type for weights of the format {weight.format!r}; only uniform weights and dense "
            "ones can be written; export to another format"
        )
    try:
        return blocks(weight)
    except ConfigError as error:
        raise ConfigError(f"{layer}: {error}") from None


def _encode(name: str, tensor: Tensor) -> Encoded:
    if tensor.dtype not in KINDS:
        raise ConfigError(
            f"{name} is {tensor.dtype}; GGUF gets float32, float16 or bfloat16; convert it to one of them"
        )
    wide = tensor.detach().cpu().contiguous() if tensor.dim() > 1 else tensor.detach().cpu().float()
    kind = KINDS[wide.dtype]
    return kind, (wide.view(torch.uint8) if wide.dtype == torch.bfloat16 else wide).numpy()


def _halves_to_pairs(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of each head reordered: transformers rotates row i with i + head_dim/2, llama.cpp 2i with 2i + 1."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _check_names(config: Any, tensors: Mapping[str, Encoded]) -> None:
    """ConfigError unless the tensors are those of a Llama: readers fill in missing ones and drop unknown ones."""
    expected = {
        f"blk.{i}.{layer}.weight" for i in range(config.num_hidden_layers) for layer in LAYERS
    }
    expected |= {"token_embd.weight", "output_norm.weight"}
    expected |= set() if config.tie_word_embeddings else {"output.weight"}
    missing, unknown = (
        sorted(expected - tensors.keys()),
        sorted(tensors.keys() - expected - {"output.weight"}),
    )
    if missing or unknown:
        raise ConfigError(
            f"GGUF's architecture 'llama' lacks {unknown[:3] or 'nothing'} of this model, and the model lacks "
            f"{missing[:3] or 'nothing'} of it; {_ELSEWHERE}"
        )
    rows = tensors["token_embd.weight"][1].shape[0]
    if rows != config.vocab_size:
        raise ConfigError(
            f"the embedding has {rows} rows and the config says vocab_size={config.vocab_size}; correct it"
        )


def _file_type(tensors: Mapping[str, Encoded]) -> Any:
    """What llama.cpp calls the file: the type of most of its matrices."""
    matrices = Counter(kind for kind, rows in tensors.values() if rows.ndim > 1)
    name = matrices.most_common(1)[0][0].name
    return LlamaFileType.ALL_F32 if name == "F32" else LlamaFileType[f"MOSTLY_{name}"]


def _write(writer: GGUFWriter, path: Path) -> None:
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
