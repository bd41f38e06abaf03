"""Writing a model's folder, with quantized layers packed; `qbench.checkpoint.folder` reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from qbench.checkpoint.card import write_card
from qbench.checkpoint.config import quantization_entry, stored_tensors
from qbench.contracts import WeightFormat
from qbench.errors import StoreError
from qbench.files.atomic import write_whole_folder
from qbench.files.written_folder import SHARD_BYTES, require_writable, write_index, write_shards
from qbench.formats.dense import narrowed
from qbench.models.blocks import is_linear
from qbench.models.tokenizers import save_tokenizer

LOG = "quantize_log.json"
_NOT_STORED = (
    "torch_dtype",  # an older name of dtype
    "_name_or_path",  # a path of this machine
    "quantization_config",  # that of the model before; ours is added
)


def save_checkpoint(
    folder: Path,
    model: Any,
    tokenizer: Any,
    weights: Mapping[str, WeightFormat],
    manifest: Mapping[str, Any],
    log: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a quantized model to `folder`, whole or not at all. An older one of ours goes.

    log: what the method has to tell, if anything, goes into a file of its own. Unquantized tensors
    are stored in half precision where that loses nothing. StoreError where the disk refuses, and
    where something is there that qbench has not written.
    """
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        for part, tensor in stored_tensors(weight).items():
            tensors[f"{name}.{part}"] = tensor
    tensors |= unquantized_tensors(model, weights)
    entry = entry_of(model, weights, manifest)

    def finish(part: Path) -> None:
        write_findings(part, entry, weights, log)

    generation = getattr(model, "generation_config", None)
    return write_model_folder(
        folder, model.config, tokenizer, tensors, entry, generation, finish, shard_bytes
    )


def entry_of(
    model: Any, weights: Mapping[str, WeightFormat], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """The `quantization_config` of a model with these quantized weights; JSON-able."""
    dense = []
    for name, layer in model.named_modules():
        if is_linear(layer) and name not in weights:
            dense.append(name)
    return quantization_entry(weights, dense, manifest)


def write_findings(
    part: Path,
    entry: Mapping[str, Any],
    weights: Mapping[str, WeightFormat],
    log: Mapping[str, Any],
) -> None:
    """Write the card, and the log where there is one, into a folder that is being made."""
    write_card(part, entry, weights)
    if log:
        (part / LOG).write_text(json.dumps(log) + "\n")


def write_model_folder(
    folder: Path,
    config: Any,
    tokenizer: Any,
    tensors: Mapping[str, Tensor],
    entry: Mapping[str, Any] | None,
    generation_config: Any = None,
    finish: Callable[[Path], None] = lambda part: None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """A Hugging Face directory of these tensors, written whole or not at all.

    entry: its quantization_config, if any. finish: writes further files into the folder that it is
    called with. StoreError where the disk refuses, and where something is there that qbench has not
    written.
    """
    require_writable(folder)

    def write(part: Path) -> None:
        hashes = write_shards(part, tensors, shard_bytes)
        write_settings(part, config, tokenizer, tensors, entry, generation_config)
        finish(part)
        write_index(part, hashes)

    return written_whole(folder, write)


def write_settings(
    part: Path,
    config: Any,
    tokenizer: Any,
    tensors: Mapping[str, Tensor],
    entry: Mapping[str, Any] | None,
    generation_config: Any,
) -> None:
    """Write the JSON files and the tokenizer of a model into a folder that is being made.

    tensors: of the whole model; they need no data.
    """
    content = {key: value for key, value in config.to_dict().items() if key not in _NOT_STORED}
    content["dtype"] = _main_dtype(tensors)
    if entry is not None:
        content["quantization_config"] = entry
    (part / "config.json").write_text(json.dumps(content, indent=2, default=str) + "\n")
    if generation_config is not None:
        # not save_pretrained, which refuses what some published models carry
        generation_config.to_json_file(part / "generation_config.json")
    if tokenizer is not None:
        _save_tokenizer(tokenizer, part)


def written_whole(folder: Path, write: Callable[[Path], object]) -> Path:
    """`write_whole_folder`; StoreError also where the safetensors library cannot write."""
    try:
        return write_whole_folder(folder, write)
    except SafetensorError as error:
        raise StoreError(
            f"{folder} cannot be written ({error}); free space, or choose another folder"
        ) from error


def unquantized_tensors(model: nn.Module, weights: Mapping[str, object]) -> dict[str, Tensor]:
    """Everything that no quantized layer holds, by name; biases are among them.

    Tied tensors, which share storage, are there once; those of paged blocks, which are not in
    memory, are left out. In half precision where that loses nothing. weights: its keys are the
    quantized layers.
    """
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if is_quantized_part(name, weights) or tensor.is_meta or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = narrowed(tensor.detach())
    return tensors


def is_quantized_part(name: str, weights: Mapping[str, object]) -> bool:
    """Whether a tensor belongs to a quantized weight; the bias of such a layer does not."""
    layer, _, part = name.rpartition(".")
    return layer in weights and part != "bias"


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """StoreError where the disk refuses, of which the tokenizers library makes a bare Exception."""
    try:
        save_tokenizer(tokenizer, folder)
    except Exception as error:
        if type(error) is Exception and "os error" in str(error):
            raise StoreError(
                f"{folder} cannot be written ({error}); free space, or choose another folder"
            ) from error
        if isinstance(error, UnicodeError):
            raise StoreError(
                f"the tokenizer holds text that no file takes ({error}); give that of the original"
            ) from None
        raise


def _main_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The dtype that the model should compute in: that of most bytes in `<module>.weight`.

    Scales have other names, and so do not count.
    """
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            sizes[dtype] = sizes.get(dtype, 0) + tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default="float32")
