"""Saved models: an ordinary Hugging Face directory whose quantized layers are stored packed.

`config.json` carries `quantization_config` (`qbench.checkpoint.config`); the safetensors files
carry `<layer>.<part>` for quantized layers and everything else as it was (`qbench.files.shards`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from qbench.checkpoint.card import write_card
from qbench.checkpoint.config import compare, plausible, read_layout, state, stored
from qbench.checkpoint.packed_linear import pack, packed_layers
from qbench.contracts import WeightFormat
from qbench.errors import StoreError
from qbench.exchange.foreign import READERS, read_foreign
from qbench.files.shards import SHARD_BYTES, Shards, is_ours, read_json, seal, swap, write_shards
from qbench.models.blocks import is_linear
from qbench.models.experts import unfuse_experts
from qbench.records import Record

LOG = "quantize_log.json"
_NOT_STORED = (
    "torch_dtype",
    "_name_or_path",
    "quantization_config",
)  # an older name of dtype; a path of this machine


def save(
    folder: Path,
    model: Any,
    tokenizer: Any,
    weights: Mapping[str, WeightFormat],
    manifest: Mapping[str, Any],
    log: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write the directory beside its place and put it there in one step: whole or not at all. An older one goes.

    log: what the method has to tell, if anything, goes into a file of its own. Unquantized tensors
    are stored in half precision where that loses nothing. StoreError where the disk refuses.
    """
    dense = [
        name for name, layer in model.named_modules() if is_linear(layer) and name not in weights
    ]
    tensors = {
        f"{name}.{part}": t
        for name, weight in weights.items()
        for part, t in stored(weight).items()
    }
    tensors |= unquantized(model, weights)
    entry = state(weights, dense, manifest)

    def finish(part: Path) -> None:
        write_card(part, entry, weights)
        if log:
            (part / LOG).write_text(json.dumps(log) + "\n")

    generation = getattr(model, "generation_config", None)
    return write_folder(
        folder, model.config, tokenizer, tensors, entry, generation, finish, shard_bytes
    )


def write_folder(
    folder: Path,
    config: Any,
    tokenizer: Any,
    tensors: Mapping[str, Tensor],
    entry: Mapping[str, Any] | None,
    generation_config: Any = None,
    finish: Callable[[Path], None] = lambda part: None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """A Hugging Face directory of these tensors, written beside its place and put there in one step.

    entry: its quantization_config, if any. finish: writes further files. StoreError where the disk
    refuses, and where something is there that qbench has not written.
    """
    if not is_ours(folder):
        raise StoreError(
            f"{folder} is there and was not written by qbench, or is damaged; choose another folder, or remove it first"
        )
    stated = {key: value for key, value in config.to_dict().items() if key not in _NOT_STORED}
    stated["dtype"] = _main_dtype(tensors)
    if entry is not None:
        stated["quantization_config"] = entry
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            part = Path(scratch) / folder.name
            part.mkdir()
            write_shards(part, tensors, shard_bytes)
            (part / "config.json").write_text(json.dumps(stated, indent=2, default=str) + "\n")
            if generation_config is not None:
                # not save_pretrained, which refuses what some published models carry
                generation_config.to_json_file(part / "generation_config.json")
            if tokenizer is not None:
                tokenizer.save_pretrained(part)
            finish(part)
            seal(part)
            swap(part, folder)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"the quantized model cannot be written to {folder}: {error}; free space or choose another folder"
        ) from error
    return folder


def load(
    folder: Path, dtype: str, packed: bool
) -> tuple[Any, Any, dict[str, WeightFormat], dict[str, Any]]:
    """(model, tokenizer, quantized weights, what the method stated).

    packed: linear layers stay packed, else they are dequantized into `dtype`. Nothing of the folder
    is executed, every tensor of the files is used, and none may be missing: StoreError.
    """
    config, shards = read_json(folder / "config.json"), Shards(folder)
    plausible(config, len(shards.entries), folder / "config.json")
    weights, facts = _read_weights(folder, config, shards)
    model = _skeleton(folder)
    kind = model.config.dtype if dtype == "auto" else getattr(torch, dtype)
    kind = kind if isinstance(kind, torch.dtype) else torch.float32
    pack(model, weights)
    rest = sorted(name for name in shards.entries if not _quantized_part(name, weights))
    _fill(model, {name: _cast(shards.tensor(name), kind) for name in rest}, folder)
    if not packed:
        unpack(model, kind)
    return model.eval(), _tokenizer(folder), weights, facts


def _read_weights(
    folder: Path, config: dict[str, Any], shards: Shards
) -> tuple[dict[str, WeightFormat], dict[str, Any]]:
    """The quantized layers, and what the method stated; of our own folders, and of those that `exchange` reads."""
    entry = config.get("quantization_config")
    if isinstance(entry, dict) and entry.get("quant_method") in list(
        READERS
    ):  # it may be anything, even a list
        return dict(read_foreign(entry, shards)), {
            "method": entry["quant_method"],
            "foreign": entry,
        }
    layout = read_layout(config, folder / "config.json")
    weights = {}
    for name, group in compare(layout, shards).items():
        weight = group.weight({part: shards.tensor(f"{name}.{part}") for part in group.parts})
        weights[name] = _finite(name, weight, folder)
    return weights, layout.facts()


def unpack(model: nn.Module, kind: torch.dtype) -> None:
    """Every packed layer becomes a linear layer whose weight is dequantized into `kind`."""
    for name, layer in list(packed_layers(model)):
        dense = nn.Linear(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        dense.weight = nn.Parameter(layer.quantized().dequantize().to(kind), requires_grad=False)
        dense.register_parameter("bias", layer.bias)
        home, _, child = name.rpartition(".")
        setattr(model.get_submodule(home), child, dense)


def add_scores(folder: Path, record: Record) -> None:
    """Write the model card again, with the scores of a record. StoreError where the folder is damaged or read-only."""
    config = read_json(folder / "config.json")
    weights = {
        name: group.weight()
        for name, group in read_layout(config, folder / "config.json").modules().items()
    }
    try:
        write_card(folder, config["quantization_config"], weights, record)
    except OSError as error:
        raise StoreError(
            f"the model card in {folder} cannot be written: {error}; free space"
        ) from None


def read_log(folder: Path) -> dict[str, Any]:
    """What the method told, by block; empty where it told nothing. StoreError where the file is damaged."""
    return read_json(folder / LOG) if (folder / LOG).is_file() else {}


def bytes_on_disk(folder: Path) -> int:
    """Size of all files in the directory."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def is_quantized(folder: Path) -> bool:
    """Whether a directory was written by `save`."""
    try:
        return bool(read_layout(read_json(folder / "config.json"), folder))
    except StoreError:
        return False


def is_readable(folder: Path) -> bool:
    """Whether `load` reads this directory: one of ours, or one that `exchange` reads."""
    entry = (
        read_json(folder / "config.json").get("quantization_config")
        if (folder / "config.json").is_file()
        else None
    )
    return isinstance(entry, dict) and entry.get("quant_method") in ["qbench", *READERS]


def unquantized(model: nn.Module, weights: Mapping[str, WeightFormat]) -> dict[str, Tensor]:
    """Everything that no quantized layer holds, once each (tied tensors share storage); biases are among them.

    In half precision where that loses nothing.
    """
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict().items():
        if _quantized_part(name, weights) or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        found[name] = _narrowed(tensor.detach())
    return found


def _quantized_part(name: str, weights: Mapping[str, WeightFormat]) -> bool:
    home, _, child = name.rpartition(".")
    return home in weights and child != "bias"


def _narrowed(tensor: Tensor) -> Tensor:
    """In bfloat16, else in float16, where that is exact."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.bfloat16, torch.float16):
            if torch.equal(tensor.to(dtype).float(), tensor):
                return tensor.to(dtype)
    return tensor


def _main_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The dtype of most bytes in `<module>.weight`, so that scales do not count: what the model should compute in."""
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.is_floating_point():
            key = str(tensor.dtype).removeprefix("torch.")
            sizes[key] = sizes.get(key, 0) + tensor.nbytes
    return max(sizes, key=lambda key: sizes[key], default="float32")


def _skeleton(folder: Path) -> Any:
    """The model of config.json without data. Whatever transformers makes of a wrong entry becomes a StoreError."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # transformers 4
        from transformers.modeling_utils import no_init_weights
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with no_init_weights(), init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config)
        unfuse_experts(model, refuse=False)
    except Exception as error:  # a wrong entry makes transformers raise nearly anything
        raise StoreError(
            f"{folder / 'config.json'} describes no model: {type(error).__name__}: {str(error)[:200]}; copy it again"
        ) from None
    return model


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # see _skeleton
        raise StoreError(
            f"the tokenizer in {folder} cannot be read: {type(error).__name__}: {str(error)[:200]}; copy it again"
        ) from None


def _cast(tensor: Tensor, kind: torch.dtype) -> Tensor:
    return tensor.to(kind) if tensor.is_floating_point() else tensor


def _finite(name: str, weight: WeightFormat, folder: Path) -> WeightFormat:
    for part, tensor in weight.to_tensors().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StoreError(f"{folder}: {name}.{part} is not finite; copy or quantize again")
    return weight


def _fill(model: Any, found: dict[str, Tensor], folder: Path) -> None:
    """Assign what is not quantized. StoreError by name where a tensor is missing, unexpected or of another shape."""
    try:
        unexpected = model.load_state_dict(found, strict=False, assign=True).unexpected_keys
    except RuntimeError as error:
        raise StoreError(
            f"{folder}: {' '.join(str(error).split())[:300]}; copy or quantize again"
        ) from None
    model.tie_weights()
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if missing or unexpected:
        raise StoreError(
            f"{folder}: missing {missing[:3] or 'nothing'}, unexpected {unexpected[:3] or 'nothing'}"
        )
