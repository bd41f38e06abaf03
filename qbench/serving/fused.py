"""Layers that a server computes as one, such as q, k and v: how they are stored together.

Their rows stand one below the other, so they have to agree in format, bits, groups and settings.
What may differ is how exact their numbers are: float16 goes into float32, and integers that are
packed into numbers, without loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from qbench.checkpoint.config import SENTINEL, Group, QuantizationConfig
from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.formats import Binary, Dense, Uniform, from_tensors
from qbench.formats.packing import group_count, unpack

SERVED = (Binary.format, Uniform.format)


def served_layers(layout: QuantizationConfig) -> dict[str, Group]:
    """The groups of the quantized layers, by full name; a layer left dense is none of them.

    ConfigError where a layer is in a format that has no products in a server.
    """
    for group in layout.groups:
        if group.format not in (*SERVED, Dense.format):
            raise ConfigError(
                f"{group.modules[0]} is stored as {group.format!r}, and vLLM serves only "
                f"{' and '.join(SERVED)}; load the model with transformers, or quantize it with a "
                "method of these formats (`qbench list methods`)"
            )
    modules = layout.modules().items()
    return {name: group for name, group in modules if group.format != Dense.format}


def fused(name: str, members: Mapping[str, Group | None]) -> WeightFormat:
    """A weight without values that is stored like all members, whatever its number of rows.

    name: of the layer that they become. members: by their names; None is an unquantized one.
    ConfigError where they do not agree.
    """
    groups: list[Group] = []
    for member, group in members.items():
        if group is None:
            quantized = next(other for other, its in members.items() if its is not None)
            raise ConfigError(
                f"vLLM computes {name} as one layer, and of it {quantized} is quantized and "
                f"{member} is not; quantize all of them, or none"
            )
        groups.append(group)
    weights = [group.weight() for group in groups]
    for what, of in _AGREED.items():
        values = [of(weight) for weight in weights]
        if any(value != values[0] for value in values):
            stated = ", ".join(f"{m} {v}" for m, v in zip(members, values, strict=True))
            raise ConfigError(
                f"vLLM computes {name} as one layer, whose parts must share {what}: {stated}; "
                "quantize them alike, or load the model with transformers"
            )
    tensors: dict[str, Tensor] = {}
    for part in weights[0].to_tensors():
        tensors[part] = _widest([weight.to_tensors()[part] for weight in weights])
    return from_tensors(weights[0].format, tensors, weights[0].spec())


def widened(part: Tensor, dtype: torch.dtype, spec: Mapping[str, Any]) -> Tensor:
    """A part of a member in the dtype of all: packed integers become numbers, (out, groups).

    spec: of the weight.
    """
    if part.dtype == torch.uint8 and dtype.is_floating_point:
        part = unpack(part, spec["bits"], group_count(spec["in_features"], spec["group_size"]))
    return part.to(dtype)


def _widest(parts: list[Tensor]) -> Tensor:
    """A part like the first, whose dtype holds the numbers of all; on the meta device."""
    numbers = [part for part in parts if part.is_floating_point()]
    like = (numbers or parts)[0]
    dtype = reduce(torch.promote_types, [part.dtype for part in parts])
    return torch.empty((len(parts[0]), *like.shape[1:]), dtype=dtype, device="meta")


def _bits(weight: WeightFormat) -> Any:
    return getattr(weight, "bits", None)


def _settings(weight: WeightFormat) -> Any:
    return weight.spec() | {"parts": sorted(set(weight.to_tensors()) - {SENTINEL})}


_AGREED: dict[str, Callable[[WeightFormat], Any]] = {
    "the format": lambda weight: weight.format,
    "the bits": _bits,
    "the group size": lambda weight: weight.spec()["group_size"],
    "the settings": _settings,
}
