"""A whole model as one GGUF file, for llama.cpp and for transformers.

    token_embd.weight, output_norm.weight, output.weight    the last one only where it is not tied
    blk.N.attn_norm, blk.N.ffn_norm                         vectors, which become float32
    blk.N.attn_q, attn_k, attn_v, attn_output               matrices (out, in)
    blk.N.ffn_gate, ffn_up, ffn_down                        matrices (out, in)

all with `.weight`, and what the architecture has of its own (`gguf_architectures.py`): of a Llama,
the rows of attn_q and attn_k stand in another order than in transformers, see `_halves_to_pairs`.
Source: llama.cpp, convert_hf_to_gguf.py and conversion/ (metadata, names, the order of the rows).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from numpy.typing import NDArray
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.exchange.gguf import blocks
from qbench.exchange.gguf_architectures import Architecture
from qbench.exchange.gguf_metadata import add_config, architecture_of, rope_divisors
from qbench.exchange.gguf_tokenizer import add_tokenizer
from qbench.files.atomic import write_whole
from qbench.formats import Dense, Uniform

# The type of GGUF, and the rows: numbers, or uint8 where numpy lacks the type.
Encoded = tuple[Any, NDArray[Any]]
KINDS = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}


def export_model_gguf(
    config: Any,
    tokenizer: Any,
    quantized: Mapping[str, WeightFormat],
    others: Iterable[tuple[str, Tensor]],
    path: Path,
) -> Path:
    """Write a model as the GGUF file `path`: whole or not at all.

    config, tokenizer: those of transformers; the tokenizer a byte-level BPE. quantized: layer name
    -> weight; uniform weights as the smallest type of GGUF that holds them exactly, dense ones as
    they are. others: (name, tensor) of the rest of the state dict, in float32, float16 or bfloat16,
    kept so; vectors become float32, which llama.cpp wants. Llama 3's stretched rope and the heads
    of a Qwen are written as llama.cpp reads them; transformers' reader takes the one for plain and
    the others to have their usual size. ConfigError, naming the layer, where GGUF or the
    architecture cannot say the same; StoreError where it cannot be written. Everything is held in
    memory once.
    """
    architecture = architecture_of(config)
    tensors = _encoded_tensors(architecture, config, quantized, others)
    _check_names(architecture, config, tensors)
    divisors = rope_divisors(config)
    if divisors is not None:
        tensors["rope_freqs.weight"] = (GGMLQuantizationType.F32, divisors.numpy())
    writer = GGUFWriter(None, architecture.name)
    add_config(writer, config, path.stem)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    writer.add_file_type(_file_type(tensors))
    writer.add_quantization_version(GGML_QUANT_VERSION)
    for name, (kind, rows) in tensors.items():
        writer.add_tensor(name, rows, raw_dtype=kind)
    write_whole(path, lambda part: _write(writer, part))
    return path


def _encoded_tensors(
    architecture: Architecture,
    config: Any,
    quantized: Mapping[str, WeightFormat],
    others: Iterable[tuple[str, Tensor]],
) -> dict[str, Encoded]:
    """Every tensor by its name in GGUF, without a head that is tied to the embedding."""
    encoded: dict[str, Encoded] = {}
    for layer, weight in quantized.items():
        encoded[f"{layer}.weight"] = _encode_weight(layer, weight)
    for name, tensor in others:
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            encoded[name] = _encode(name, tensor)
    target_names = get_tensor_name_map(architecture.kind, config.num_hidden_layers)
    tensors = {}
    for name, (kind, rows) in encoded.items():
        target = target_names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ConfigError(
                f"the tensor {name!r} has no name in GGUF's architecture {architecture.name!r}; "
                "export to another format"
            )
        layer = target.split(".")[-2]
        if layer in architecture.paired:
            rows = _halves_to_pairs(rows, _heads(config, layer))
        tensors[target] = kind, rows
    return tensors


def _heads(config: Any, layer: str) -> int:
    of_queries = layer == "attn_q"
    return int(config.num_attention_heads if of_queries else config.num_key_value_heads)


def _halves_to_pairs(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """(heads * head_dim, ...): within a head, row i of either half becomes row 2i and 2i + 1.

    transformers rotates row i together with i + head_dim/2, llama.cpp row 2i together with 2i + 1.
    """
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])  # (heads, 2, head_dim/2, ...)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _encode_weight(layer: str, weight: WeightFormat) -> Encoded:
    if isinstance(weight, Dense):
        return _encode(layer, weight.weight)
    if not isinstance(weight, Uniform):
        raise ConfigError(
            f"{layer}: GGUF has no type for weights of the format {weight.format!r}; "
            "only uniform weights and dense ones can be written; export to another format"
        )
    try:
        return blocks(weight)
    except ConfigError as error:
        raise ConfigError(f"{layer}: {error}") from None


def _encode(name: str, tensor: Tensor) -> Encoded:
    if tensor.dtype not in KINDS:
        raise ConfigError(
            f"{name} is {tensor.dtype}; GGUF gets float32, float16 or bfloat16; "
            "convert it to one of them"
        )
    rows = tensor.detach().cpu()
    rows = rows.contiguous() if rows.dim() > 1 else rows.float()
    kind = KINDS[rows.dtype]
    if rows.dtype == torch.bfloat16:  # numpy has no bfloat16
        rows = rows.view(torch.uint8)
    return kind, rows.numpy()


def _check_names(architecture: Architecture, config: Any, tensors: Mapping[str, Encoded]) -> None:
    """ConfigError unless the tensors are those of the architecture.

    Readers fill missing tensors in and drop unknown ones, so that nobody else would notice.
    """
    expected = architecture.tensors(config.num_hidden_layers, config.tie_word_embeddings)
    missing = sorted(expected - tensors.keys())
    unknown = sorted(tensors.keys() - expected - {"output.weight"})
    if missing or unknown:
        raise ConfigError(
            f"GGUF's architecture {architecture.name!r} lacks {unknown[:3] or 'nothing'} of this "
            f"model, and the model lacks {missing[:3] or 'nothing'} of it; export to another format"
        )
    _, embedding = tensors["token_embd.weight"]
    if embedding.shape[0] != config.vocab_size:
        raise ConfigError(
            f"the embedding has {embedding.shape[0]} rows and the config says "
            f"vocab_size={config.vocab_size}; correct it"
        )


def _file_type(tensors: Mapping[str, Encoded]) -> Any:
    """What llama.cpp calls the file: the type of most of its matrices."""
    matrices = Counter(kind for kind, rows in tensors.values() if rows.ndim > 1)
    [(kind, _)] = matrices.most_common(1)
    return LlamaFileType.ALL_F32 if kind.name == "F32" else LlamaFileType[f"MOSTLY_{kind.name}"]


def _write(writer: GGUFWriter, path: Path) -> None:
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
