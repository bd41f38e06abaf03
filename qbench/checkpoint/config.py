"""`quantization_config` of a saved model: how each layer is stored, and what its tensors are.

Layers that agree in everything stand in one group. Every tensor's dtype and shape are stated, so
that a file can be held against its own config, and a model be built, before a byte of data is read:

    {"quant_method": "qbench", "version": 3, "method": "rtn", ...,
     "modules_to_not_convert": ["lm_head"],
     "groups": [{"format": "uniform",
                 "spec": {"bits": 4, "in_features": 64, "group_size": 32},
                 "parts": {"codes": {"dtype": "uint8", "shape": [64, 32]}, ...},
                 "modules": ["model.layers.0.self_attn.q_proj", ...]}, ...]}

Version 3 has scales as integers (`qbench.formats.stepped`): parts and settings that version 2 did
not know. All else is as it was in version 2, which is read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import StoreError
from qbench.files.shards import DTYPE_NAMES, Shards
from qbench.formats import from_tensors

VERSION: Literal[3] = 3
READABLE = (2, 3)
SENTINEL = "weight"  # see `stored_tensors`
Size = Annotated[int, Field(ge=0, lt=2**31)]
_LISTS = ("alpha_bits", "blocks")  # settings of formats that are lists of whole numbers
_WORDS = ("features",)  # and those that are text
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES.values()}


class Part(BaseModel):
    """One tensor of a layer: the dtype by torch's name, and the shape."""

    model_config = ConfigDict(extra="forbid")
    dtype: str
    shape: Annotated[list[Size], Field(max_length=4)]

    def empty(self) -> Tensor:
        """A tensor of this dtype and shape on the meta device."""
        return torch.empty(self.shape, dtype=_DTYPES[self.dtype], device="meta")


class Group(BaseModel):
    """Layers that are stored alike.

    format, spec: the weight format, and what it needs beside the tensors. parts: the tensors of
    each layer. modules: the layers' full names.
    """

    model_config = ConfigDict(extra="forbid")
    format: str
    spec: dict[str, Any]
    parts: dict[str, Part]
    modules: Annotated[list[str], Field(min_length=1)]

    def weight(self, tensors: Mapping[str, Tensor] | None = None) -> WeightFormat:
        """The weight of one of the layers. StoreError where the parts do not fit.

        tensors: the layer's parts by name; without them the weight is on the meta device.
        """
        if not tensors:
            tensors = {name: part.empty() for name, part in self.parts.items()}
        return from_tensors(self.format, tensors, self.spec)


class QuantizationConfig(BaseModel):
    """The whole entry. What the method says about itself stands beside these fields."""

    model_config = ConfigDict(extra="allow")
    quant_method: Literal["qbench"] = "qbench"
    version: Literal[2, 3] = VERSION
    modules_to_not_convert: list[str] = []
    groups: list[Group]

    def modules(self) -> dict[str, Group]:
        """The group of each layer, by its full name. StoreError where one is named twice."""
        groups: dict[str, Group] = {}
        for group in self.groups:
            for name in group.modules:
                if name in groups:
                    raise StoreError("quantization_config names a module twice; quantize again")
                groups[name] = group
        return groups

    def facts(self) -> dict[str, Any]:
        """What the method said about itself: name, paper, parameters, scheme, costs."""
        return self.model_dump(
            exclude={"quant_method", "version", "groups", "modules_to_not_convert"}
        )


def quantization_entry(
    weights: Mapping[str, WeightFormat], unquantized: list[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The `quantization_config` for these weights, JSON-able.

    weights: by the full names of their layers. unquantized: linear layers that stay as they are.
    facts: what the method says about itself.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, weight in weights.items():
        parts = {}
        for part, tensor in stored_tensors(weight).items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            parts[part] = {"dtype": dtype, "shape": list(tensor.shape)}
        # Layers whose format, settings and tensors are described by the same text are stored alike.
        alike = {"format": weight.format, "spec": weight.spec(), "parts": parts}
        group = groups.setdefault(repr(alike), alike | {"modules": []})
        group["modules"].append(name)
    entry: dict[str, Any] = {"quant_method": "qbench", "version": VERSION}
    entry |= facts
    entry |= {"modules_to_not_convert": unquantized, "groups": list(groups.values())}
    return entry


def stored_tensors(weight: WeightFormat) -> dict[str, Tensor]:
    """The parts of a weight as they are in the file, the sentinel among them.

    An empty `<layer>.weight` makes every loader that does not know the format stop at the wrong
    shape. Without it transformers finds the weight missing, warns, and goes on with random numbers.
    """
    sentinel = torch.empty(0, dtype=torch.uint8)
    return {SENTINEL: sentinel} | weight.to_tensors()


def read_layout(config: Mapping[str, Any], where: object) -> QuantizationConfig:
    """The entry in the content of a config.json, whose place `where` messages name.

    StoreError naming the field where it is not one that this qbench reads.
    """
    entry = config.get("quantization_config")
    if not isinstance(entry, Mapping) or entry.get("quant_method") != "qbench":
        quant_method = entry.get("quant_method") if isinstance(entry, Mapping) else entry
        raise StoreError(
            f"{where} is not the config of a model quantized by qbench: "
            f"quant_method is {quant_method!r}"
        )
    if entry.get("version") not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise StoreError(
            f"{where} has format version {entry.get('version')!r}; this qbench reads versions "
            f"{readable}: quantize again, or use the qbench that wrote it"
        )
    try:
        layout = QuantizationConfig.model_validate(entry)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise StoreError(
            f"{where}: quantization_config.{field}: {problem['msg']}; quantize again"
        ) from None
    for group in layout.groups:
        for part in group.parts.values():
            if part.dtype not in _DTYPES:
                raise StoreError(
                    f"{where} states dtype {part.dtype!r}; known are {', '.join(_DTYPES)}"
                )
        _require_settings(group, where)
        used = group.weight().to_tensors().keys() | {SENTINEL}  # raises where parts do not fit
        unused = sorted(group.parts.keys() - used)
        if unused:
            raise StoreError(
                f"{where} states a part {unused[0]!r} of {group.modules[0]}, which no "
                f"{group.format!r} weight with its other parts has; copy or quantize again"
            )
    return layout


def _require_settings(group: Group, where: object) -> None:
    """StoreError where a setting of a format is no whole number, or no list of them or word."""
    for name, value in group.spec.items():
        if name in _WORDS and isinstance(value, str):
            continue
        listed = name in _LISTS and isinstance(value, list)
        numbers = value if listed else [value]
        if listed == (name in _LISTS) and all(_is_size(number) for number in numbers):
            continue
        what = "a list of whole numbers" if name in _LISTS else "a whole number"
        raise StoreError(
            f"{where} states {name}={value!r} for {group.modules[0]}; it is {what} from 0 to "
            "2147483647: copy or quantize again"
        )


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31  # true is no number


def compare(layout: QuantizationConfig, shards: Shards) -> dict[str, Group]:
    """The group of each layer, by its full name, once files and config say the same of it.

    StoreError naming the first tensor that is missing, has another dtype or shape, or is a part of
    a layer that the config does not have.
    """
    modules = layout.modules()
    for name, group in modules.items():
        for part_name, part in group.parts.items():
            tensor = f"{name}.{part_name}"
            entry = shards.entries.get(tensor)
            if entry is None:
                raise StoreError(
                    f"{shards.folder}: tensor {tensor} is missing; copy or quantize again"
                )
            if entry.dtype != _DTYPES[part.dtype] or list(entry.shape) != part.shape:
                raise StoreError(
                    f"{entry.file}: tensor {tensor} is {entry.dtype} {entry.shape}, its config "
                    f"says {part.dtype} {tuple(part.shape)}; copy or quantize again"
                )
    for tensor, entry in shards.entries.items():
        layer, _, part_name = tensor.rpartition(".")
        if layer in modules and part_name not in ("bias", *modules[layer].parts):
            raise StoreError(
                f"{entry.file}: tensor {tensor} is no part of that layer in its config.json; "
                "copy or quantize again"
            )
    return modules
