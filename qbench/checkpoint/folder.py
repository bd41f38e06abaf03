"""Saved models: an ordinary Hugging Face directory whose quantized layers are stored packed.

`config.json` carries `quantization_config` (`qbench.checkpoint.config`). The safetensors files
(`qbench.files.shards`) carry `<layer>.<part>` for quantized layers, and all else as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qbench.checkpoint.card import write_card
from qbench.checkpoint.card_metadata import Benchmark
from qbench.checkpoint.config import compare, read_layout
from qbench.checkpoint.packed_linear import pack, unpack
from qbench.checkpoint.skeleton import (
    fill,
    read_generation,
    read_skeleton,
    read_tokenizer,
    without_leftovers,
)
from qbench.checkpoint.write_folder import LOG, is_quantized_part
from qbench.contracts import WeightFormat
from qbench.errors import StoreError
from qbench.exchange.foreign import READERS, read_foreign
from qbench.files.codes import part_of_quantized
from qbench.files.model_folder import quantization_settings
from qbench.files.ordinary import require_ordinary_files
from qbench.files.shards import Shards, read_json
from qbench.formats.dense import Dense
from qbench.kernels.description import moved
from qbench.models.blocks import as_kept, quantizable
from qbench.models.limits import refuse_implausible
from qbench.models.published_names import own_names
from qbench.models.source import torch_dtype
from qbench.records import Record

_CPU = torch.device("cpu")


class Checkpoint(NamedTuple):
    """What a saved model consists of.

    model: a transformers model. tokenizer: None where the folder has none. weights: quantized
    weight by the full name of its layer. manifest: what the method said about itself.
    """

    model: Any
    tokenizer: Any
    weights: dict[str, WeightFormat]
    manifest: dict[str, Any]


def load_checkpoint(
    folder: Path, dtype: str, packed: bool, device: torch.device = _CPU
) -> Checkpoint:
    """Read a folder of ours, or one that `qbench.exchange` reads.

    dtype: of what is not quantized, as torch calls it; `auto` is what the folder states. packed:
    linear layers stay packed, else they are dequantized into `dtype`, on the device that all of
    the model moves to. Nothing of the folder is executed. Every tensor of the files is used, but
    for what other programs leave there for nothing, and none may be missing: StoreError.
    """
    config = read_json(folder / "config.json")
    require_ordinary_files(folder)
    shards = Shards(folder)
    refuse_implausible(config, shards.entries, folder / "config.json")
    # Weights first: a folder whose files and config do not fit is refused before a model is built.
    weights, manifest = _read_weights(folder, config, shards, device)
    model = read_skeleton(folder, len(shards.entries))
    read_generation(model, folder)
    kind = model.config.dtype if dtype == "auto" else torch_dtype(dtype)
    if not isinstance(kind, torch.dtype):  # a config may state none
        kind = torch.float32
    unquantized: dict[str, Tensor] = {}
    for name in _unquantized_names(shards, weights):
        unquantized[name] = shards.tensor(name).to(device)
    if "foreign" in manifest:
        own = own_names(model.config)
        weights = {own(f"{name}.weight").removesuffix(".weight"): w for name, w in weights.items()}
        unquantized = {own(name): tensor for name, tensor in unquantized.items()}
        weights |= _left_layers(model, unquantized, folder)
    for name, tensor in unquantized.items():
        unquantized[name] = tensor.to(kind) if tensor.is_floating_point() else tensor
    pack(model, weights)
    if "foreign" in manifest:
        unquantized = without_leftovers(model, unquantized, folder)
    require_finite_tensors(unquantized, folder)
    fill(model, unquantized, folder)
    if not packed:
        unpack(model, kind)
    model.to(device)  # such as buffers that are in no file
    return Checkpoint(model.eval(), read_tokenizer(folder), weights, manifest)


def add_scores(
    folder: Path, record: Record, benchmarks: Mapping[str, Benchmark] | None = None
) -> None:
    """Write the model card again, with the scores of a record.

    benchmarks: the published data sets of its tasks, by their names in the record. StoreError where
    the folder is damaged or read-only.
    """
    config = read_json(folder / "config.json")
    modules = read_layout(config, folder / "config.json").modules()
    weights = {name: group.weight() for name, group in modules.items()}
    write_card(folder, config["quantization_config"], weights, record, benchmarks)


def read_log(folder: Path) -> dict[str, Any]:
    """What the method told, by block; empty where it told nothing.

    StoreError where the file is damaged.
    """
    return read_json(folder / LOG) if (folder / LOG).is_file() else {}


def bytes_on_disk(folder: Path) -> int:
    """Bytes of the files of weights, the same whenever the model is made again."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder was written by `save_checkpoint`."""
    try:
        read_layout(read_json(folder / "config.json"), folder)
    except StoreError:
        return False
    return True


def is_loadable(folder: Path) -> bool:
    """Whether `load_checkpoint` reads this folder.

    It does where it is one of ours, or one that `qbench.exchange` reads. StoreError where its
    config.json is damaged.
    """
    if not (folder / "config.json").is_file():
        return False
    entry = quantization_settings(folder, read_json(folder / "config.json"))
    return entry is not None and entry.get("quant_method") in ["qbench", *READERS]


def _read_weights(
    folder: Path, config: dict[str, Any], shards: Shards, device: torch.device
) -> tuple[dict[str, WeightFormat], dict[str, Any]]:
    """The quantized weights by layer, and what the method said about itself."""
    entry = quantization_settings(folder, config)
    # `in` a list, as a damaged entry may be anything, even something that cannot be hashed
    if entry is not None and entry.get("quant_method") in list(READERS):
        weights: dict[str, WeightFormat] = {}
        for name, weight in read_foreign(entry, shards).items():
            require_finite(name, weight, folder)
            weights[name] = moved(weight, str(device))
        return weights, {"method": entry["quant_method"], "foreign": dict(entry)}
    layout = read_layout(config, folder / "config.json")
    weights = {}
    for name, group in compare(layout, shards).items():
        tensors = {part: shards.tensor(f"{name}.{part}").to(device) for part in group.parts}
        weights[name] = group.weight(tensors)
        require_finite(name, weights[name], folder)
    return weights, layout.facts()


def _left_layers(model: Any, tensors: dict[str, Tensor], folder: Path) -> dict[str, Dense]:
    """What another program left as it is of the layers that qbench quantizes, out of `tensors`.

    It counts as a skipped layer of ours does. model: the skeleton.
    """
    left: dict[str, Dense] = {}
    for name, layer in quantizable(model).items():
        tensor = tensors.get(f"{name}.weight")
        if tensor is not None and tensor.is_floating_point() and tensor.ndim == 2:
            left[name] = Dense.kept(as_kept(layer, tensors.pop(f"{name}.weight")))
            require_finite(name, left[name], folder)
    return left


def require_finite(name: str, weight: WeightFormat, folder: Path) -> None:
    """StoreError where a quantized weight of this name has a part that is not finite."""
    parts = {f"{name}.{part}": tensor for part, tensor in weight.to_tensors().items()}
    # A finite step may still make numbers that are not, in a file that has been changed.
    for part in ("alpha", "shift", "scale", "zero_point"):
        numbers = getattr(weight, part, None)
        if numbers is not None:
            parts[f"{name}.{part}"] = numbers
    require_finite_tensors(parts, folder)


def require_finite_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """StoreError naming the first of a folder's tensors that is not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StoreError(f"{folder}: {name} is not finite; copy or quantize again")


def _unquantized_names(shards: Shards, weights: Mapping[str, object]) -> list[str]:
    """The tensors that no quantized weight holds, sorted; StoreError where one holds codes."""
    names = sorted(name for name in shards.entries if not is_quantized_part(name, weights))
    odd = part_of_quantized({name: shards.entries[name] for name in names})
    if odd is not None:
        raise StoreError(
            f"{shards.folder}: {odd} ({shards.entries[odd].dtype}) belongs to a weight that is "
            "quantized in another way than its config.json says; fetch the folder again, or "
            "evaluate it with the program it is for"
        )
    return names
