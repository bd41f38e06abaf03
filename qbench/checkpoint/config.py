"""`quantization_config` of a saved model: which layer is stored in which format, and what its tensors must look like.

Layers that agree in everything stand in one group. Every tensor's dtype and shape are stated, so
that a file can be held against its own config, and a model be built, before a byte of data is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import StoreError
from qbench.files.shards import DTYPES, Shards
from qbench.formats import from_tensors

VERSION: Literal[2] = 2
SENTINEL = "weight"
_DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
Size = Annotated[int, Field(ge=0, lt=2**31)]


class Part(BaseModel):
    """One tensor of a layer."""

    model_config = ConfigDict(extra="forbid")
    dtype: str
    shape: Annotated[list[Size], Field(max_length=4)]

    def empty(self) -> Tensor:
        """It, without data."""
        return torch.empty(self.shape, dtype=_DTYPE_NAMES[self.dtype], device="meta")


class Group(BaseModel):
    """Layers that are stored alike. spec: what the format needs beside the tensors."""

    model_config = ConfigDict(extra="forbid")
    format: str
    spec: dict[str, Any]
    parts: dict[str, Part]
    modules: Annotated[list[str], Field(min_length=1)]

    def weight(self, tensors: Mapping[str, Tensor] | None = None) -> WeightFormat:
        """The weight of one of the layers, from its parts or without data. StoreError where they do not fit."""
        return from_tensors(
            self.format,
            tensors or {name: part.empty() for name, part in self.parts.items()},
            self.spec,
        )


class QuantizationConfig(BaseModel):
    """The whole entry; the method's own facts are kept as they are."""

    model_config = ConfigDict(extra="allow")
    quant_method: Literal["qbench"] = "qbench"
    version: Literal[2] = VERSION
    modules_to_not_convert: list[str] = []
    groups: list[Group]

    def modules(self) -> dict[str, Group]:
        """The group of each layer. StoreError where one is named twice."""
        found = {name: group for group in self.groups for name in group.modules}
        if len(found) < sum(len(group.modules) for group in self.groups):
            raise StoreError("quantization_config names a module twice; quantize again")
        return found

    def facts(self) -> dict[str, Any]:
        """What the method said about itself."""
        return self.model_dump(
            exclude={"quant_method", "version", "groups", "modules_to_not_convert"}
        )


def state(
    weights: Mapping[str, WeightFormat], unquantized: list[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The entry for these weights, JSON-able."""
    groups: dict[str, dict[str, Any]] = {}
    for name, weight in weights.items():
        parts = {
            part: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
            for part, tensor in stored(weight).items()
        }
        alike = {"format": weight.format, "spec": weight.spec(), "parts": parts}
        groups.setdefault(repr(alike), alike | {"modules": []})["modules"].append(name)
    head = {"quant_method": "qbench", "version": VERSION}
    return (
        head
        | dict(facts)
        | {"modules_to_not_convert": unquantized, "groups": list(groups.values())}
    )


def stored(weight: WeightFormat) -> dict[str, Tensor]:
    """The parts of a weight as they are in the file, the sentinel among them.

    An empty `<layer>.weight` makes every loader that does not know the format stop at the wrong
    shape. Without it transformers finds the weight missing, warns, and goes on with random numbers.
    """
    return {SENTINEL: torch.empty(0, dtype=torch.uint8)} | weight.to_tensors()


def read_layout(config: Mapping[str, Any], where: object) -> QuantizationConfig:
    """From the content of config.json. StoreError naming the field where it is not one that this qbench reads."""
    entry = config.get("quantization_config")
    if not isinstance(entry, Mapping) or entry.get("quant_method") != "qbench":
        stated = entry.get("quant_method") if isinstance(entry, Mapping) else entry
        raise StoreError(
            f"{where} is not the config of a model quantized by qbench: quant_method is {stated!r}"
        )
    if entry.get("version") != VERSION:
        raise StoreError(
            f"{where} has format version {entry.get('version')!r}; this qbench reads version {VERSION}: "
            "quantize again, or use the qbench that wrote it"
        )
    try:
        found = QuantizationConfig.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{where}: quantization_config.{place}: {first['msg']}; quantize again"
        ) from None
    for group in found.groups:
        unknown = [part.dtype for part in group.parts.values() if part.dtype not in _DTYPE_NAMES]
        if unknown:
            raise StoreError(
                f"{where} states dtype {unknown[0]!r}; known are {', '.join(_DTYPE_NAMES)}"
            )
        group.weight()
    return found


def compare(layout: QuantizationConfig, shards: Shards) -> dict[str, Group]:
    """The group of each layer; StoreError naming the first tensor that is missing or other than its config says."""
    modules = layout.modules()
    for name, group in modules.items():
        for part, stated in group.parts.items():
            entry = shards.entries.get(f"{name}.{part}")
            if entry is None:
                raise StoreError(
                    f"{shards.folder}: tensor {name}.{part} is missing; copy or quantize again"
                )
            if (entry.dtype, list(entry.shape)) != (_DTYPE_NAMES[stated.dtype], stated.shape):
                raise StoreError(
                    f"{entry.file}: tensor {name}.{part} is {entry.dtype} {entry.shape}, its config says "
                    f"{stated.dtype} {tuple(stated.shape)}; copy or quantize again"
                )
    return modules


def plausible(config: Mapping[str, Any], tensors: int, where: object) -> None:
    """StoreError where config.json declares a model that its file cannot hold: it is refused before it is built."""
    for key, value in _numbers(config):
        counts_layers = key.startswith(
            ("num_hidden_layers", "num_layers", "n_layer", "num_local_experts", "num_experts")
        )
        limit = tensors if counts_layers else 2**31
        if not -(2**63) <= value <= limit:
            raise StoreError(
                f"{where}: {key}={value} cannot be; at most {limit} fits this folder; copy it again"
            )
    widths = [value for key, value in _numbers(config) if key in _BUFFERED and value > 0]
    if prod(widths) > 2**40:
        raise StoreError(
            f"{where}: {', '.join(_BUFFERED)} are too large together; copy the folder again"
        )


_BUFFERED = ("head_dim", "hidden_size", "n_embd", "num_attention_heads")


def _numbers(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    own = [
        (key, value)
        for key, value in config.items()
        if isinstance(value, int) and not isinstance(value, bool)
    ]
    inner = [
        pair
        for key, value in config.items()
        if isinstance(value, Mapping) and key != "quantization_config"
        for pair in _numbers(value)
    ]
    return own + inner
