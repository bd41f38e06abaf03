"""Models whose blocks stay in their files: only what is outside the blocks is read at once.

The same tensors, in the same dtype, as `qbench.models.loading.load_model` and `load_checkpoint`
give, and the same modules; a block is read, and held against what it should be, when it is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbench.checkpoint.config import Group, compare, read_layout
from qbench.checkpoint.folder import (
    Checkpoint,
    is_loadable,
    require_finite,
    require_finite_tensors,
)
from qbench.checkpoint.packed_linear import pack, unpack
from qbench.checkpoint.skeleton import read_generation, read_skeleton, read_tokenizer
from qbench.errors import ModelError, StoreError
from qbench.files.codes import refuse_codes
from qbench.files.model_folder import quantization_settings
from qbench.files.ordinary import require_ordinary_files
from qbench.files.shards import Shards, read_json, require_usual_names
from qbench.models.blocks import as_kept, decoder_blocks
from qbench.models.head import tie_head
from qbench.models.limits import refuse_implausible
from qbench.models.paging import page_out
from qbench.models.published_names import own_names
from qbench.models.source import ModelSource, local_folder, torch_dtype
from qbench.models.tokenizers import load_tokenizer

_WHOLE = "give it more memory, where it is read whole"


def can_be_paged(source: ModelSource) -> bool:
    """Whether `open_paged` reads a model: safetensors in a folder, unquantized or one of ours.

    A GGUF file, a folder of another program's format and a model with code of its own are read
    whole, and so is one of the hub that is not here in full. StoreError where its config.json is
    damaged.
    """
    folder = local_folder(source)
    if folder is None or source.trust_remote_code or not (folder / "config.json").is_file():
        return False
    if not source.local and not _is_here(folder):
        return False
    entry = quantization_settings(folder, read_json(folder / "config.json"))
    return entry is None or entry.get("quant_method") == "qbench"


def _is_here(folder: Path) -> bool:
    try:
        return bool(Shards(folder, mapped=False).entries)
    except StoreError:
        return False


def numbers_in(source: ModelSource) -> int:
    """How many numbers a model of `can_be_paged` has, by its headers, quantized ones counted each.

    StoreError where a header is not what it should be.
    """
    folder = local_folder(source)
    assert folder is not None
    shards = Shards(folder, mapped=False)
    groups: dict[str, Group] = {}
    if is_loadable(folder):
        groups = compare(read_layout(read_json(folder / "config.json"), folder), shards)
    total = sum(prod(group.weight().shape) for group in groups.values())
    for name, entry in shards.entries.items():
        layer, _, part = name.rpartition(".")
        if layer not in groups or part == "bias":
            total += prod(entry.shape)
    return total


def open_paged(source: ModelSource, dtype: str) -> Checkpoint:
    """A model of `can_be_paged`, on the CPU, whose blocks are read when they are needed.

    dtype: of the weights, those of quantized layers dequantized. The weights of the result have no
    data. ModelError or StoreError, by name, where a tensor is missing, has another shape, or
    holds codes of which the config says nothing.
    """
    folder = local_folder(source)
    assert folder is not None
    config = read_json(folder / "config.json")
    require_ordinary_files(folder)
    shards = Shards(folder, mapped=False)
    refuse_implausible(config, shards.entries, folder / "config.json")
    kind = torch_dtype(dtype)
    quantized = is_loadable(folder)
    groups: dict[str, Group] = {}
    manifest: dict[str, Any] = {}
    if quantized:
        layout = read_layout(config, folder / "config.json")
        groups = compare(layout, shards)
        manifest = layout.facts()
    else:
        require_usual_names(folder)
        refuse_codes(folder, shards.entries)
    model = read_skeleton(folder, len(shards.entries), None if quantized else kind)
    _refuse_mixed(model, kind)
    read_generation(model, folder)
    weights = {name: group.weight() for name, group in groups.items()}
    pack(model, weights)
    unpack(model, kind)
    dense = {name: model.get_submodule(name) for name in groups}
    _connect(model, _Files(shards, groups, dense, kind), source.name)
    tokenizer = read_tokenizer(folder) if quantized else load_tokenizer(source)
    return Checkpoint(model.eval(), tokenizer, weights, manifest)


@dataclass(frozen=True)
class _Files:
    """Where tensors come from.

    groups: of quantized layers, by full name. dense: the layers of the model that have their place
    in it. kind: of the result.
    """

    shards: Shards
    groups: Mapping[str, Group]
    dense: Mapping[str, Any]
    kind: torch.dtype

    def tensors(
        self, stored: Mapping[str, str], layers: Mapping[str, str], device: torch.device
    ) -> dict[str, Tensor]:
        """Tensors on a device.

        stored: of those that are not quantized, by name, the name in the files. layers: of those
        that are, the full names, by the names in the result without `.weight`.
        """
        tensors: dict[str, Tensor] = {}
        for name, place in stored.items():
            tensor = self.shards.tensor(place).to(device)
            tensors[name] = tensor.to(self.kind) if tensor.is_floating_point() else tensor
        require_finite_tensors(tensors, self.shards.folder)
        for name, layer in layers.items():
            group = self.groups[layer]
            parts: dict[str, Tensor] = {}
            for part in group.parts:
                parts[part] = self.shards.tensor(f"{layer}.{part}").to(device)
            weight = group.weight(parts)
            require_finite(layer, weight, self.shards.folder)
            values = as_kept(self.dense[layer], weight.dequantize().to(self.kind))
            tensors[f"{name}.weight"] = values.contiguous()
        return tensors


def _connect(model: Any, files: _Files, name: str) -> None:
    """Read what is outside the blocks of a skeleton, and let its blocks be paged."""
    prefix, blocks = decoder_blocks(model)
    stored = _stored_names(model, files)
    inside = tuple(f"{prefix}.{index}." for index in range(len(blocks)))
    outside = {own: place for own, place in stored.items() if not own.startswith(inside)}
    layers = {layer: layer for layer in files.groups if not layer.startswith(inside)}
    rest = files.tensors(outside, layers, torch.device("cpu"))
    model.load_state_dict(rest, strict=False, assign=True)
    tie_head(model)
    _refuse_gaps(model, stored.keys() | {f"{layer}.weight" for layer in files.groups}, name)
    for start, block in zip(inside, blocks, strict=True):
        names = _beginning(start, stored)
        quantized = _beginning(start, {layer: layer for layer in files.groups})
        page_out(block, partial(files.tensors, names, quantized))


def _beginning(start: str, names: Mapping[str, str]) -> dict[str, str]:
    """The entries of a block, whose names begin with `start`, by their names within it."""
    own: dict[str, str] = {}
    for name, value in names.items():
        if name.startswith(start):
            own[name.removeprefix(start)] = value
    return own


def _stored_names(model: Any, files: _Files) -> dict[str, str]:
    """The names in the files of the tensors that are not quantized, by their names in the model.

    A warning names those that the model does not have; ModelError where a shape is another.
    """
    known = model.state_dict()
    # Folders of ours have the model's own names.
    own = str if files.groups else own_names(model.config)
    prefix = model.base_model_prefix
    stored: dict[str, str] = {}
    unused = []
    for place, entry in files.shards.entries.items():
        layer, _, part = place.rpartition(".")
        if layer in files.groups and part != "bias":
            continue
        name = own(place)
        # A file may be of the model with its head or without.
        names = [name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")]
        name = next((candidate for candidate in names if candidate in known), "")
        if not name:
            unused.append(place)
            continue
        if known[name].shape != entry.shape:
            raise ModelError(
                f"{entry.file}: tensor {place} has shape {entry.shape}, and the model wants "
                f"{tuple(known[name].shape)}; copy it again, or {_WHOLE}"
            )
        stored[name] = place
    if unused:
        warnings.warn(
            f"{len(unused)} tensors of {files.shards.folder} are not used, such as {unused[0]}",
            stacklevel=4,
        )
    return stored


def _refuse_gaps(model: Any, there: set[str], name: str) -> None:
    """ModelError where a tensor comes from nowhere, or is shared by blocks.

    there: the names of all tensors that files hold.
    """
    _, blocks = decoder_blocks(model)
    missing = [own for own, t in model.state_dict().items() if t.is_meta and own not in there]
    if missing:
        raise ModelError(
            f"model {name!r}: {len(missing)} tensors are not in its files, such as {missing[0]}; "
            f"copy them again, or {_WHOLE}"
        )
    every = [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]
    own_ids = {id(parameter) for parameter in blocks.parameters()}
    if sum(id(parameter) in own_ids for parameter in every) > len(own_ids):
        raise ModelError(f"model {name!r} has weights that several blocks share; {_WHOLE}")


def _refuse_mixed(model: Any, kind: torch.dtype) -> None:
    """ModelError where transformers would keep some modules in float32."""
    kept = getattr(model, "_keep_in_fp32_modules_strict", None)
    if kind == torch.float16:
        kept = kept or getattr(model, "_keep_in_fp32_modules", None)
    if kept and kind != torch.float32:
        raise ModelError(
            f"a {type(model).__name__} keeps {sorted(kept)} in float32, which is not done block by "
            f"block; use --dtype float32, or {_WHOLE}"
        )
