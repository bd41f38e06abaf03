"""Folders of torchao (`quant_method: torchao`) in few bits, read from headers alone.

For a layer L with a weight of shape (out, in) in groups of g inputs, of `IntxWeightOnlyConfig`:

    L._weight_qdata           int8 (out, in)          codes, a byte each
    L._weight_scale           floating (out, in/g)    scales
    L._weight_zero_point      int8 (out, in/g)        zero points

and of `PrototypeInt4WeightOnlyConfig`, whose order of codes depends on the processor:

    L._weight_qdata           uint8 (out, in/2)       codes, two in a byte
    L._weight_scale_and_zero  floating (in/g, out, 2) scales and zero points

Source: torchao, prototype/safetensors and the tensors' classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from qbench.errors import StoreError, unknown_name
from qbench.files.shards import Shards
from qbench.inspection.foreign_headers import (
    layers_required,
    matrix,
    parameters_of,
    with_small_parts,
)
from qbench.inspection.pieces import Reading, dense_layers

CODES = "_weight_qdata"
CODES_PER_BYTE = {"IntxWeightOnlyConfig": 1, "PrototypeInt4WeightOnlyConfig": 2}
_ITEMS = {
    CODES: "codes",
    "_weight_scale": "scales",
    "_weight_zero_point": "zero_points",
    "_weight_scale_and_zero": "scales",
}


def read_torchao(entry: Mapping[str, Any], shards: Shards) -> Reading:
    """entry: the quantization_config. StoreError where its kind of tensor is not read here."""
    kind = _kind(entry)
    if kind not in CODES_PER_BYTE:
        raise StoreError(
            f"{shards.folder}: of torchao, {unknown_name('quant_type', kind, CODES_PER_BYTE)}"
        )
    weight_counts = {}
    for layer in layers_required(shards, CODES):
        codes = matrix(shards, f"{layer}.{CODES}")
        weight_counts[layer] = CODES_PER_BYTE[kind] * prod(codes.shape)
    pieces = list(with_small_parts(shards, _ITEMS, (), weight_counts))
    return Reading("torchao", pieces, dense_layers(pieces), None, kind, parameters_of(entry))


def _kind(entry: Mapping[str, Any]) -> str:
    """The name of the configuration's class; empty where there is none."""
    kinds = entry.get("quant_type")
    kind = kinds.get("default") if isinstance(kinds, dict) else None
    return str(kind.get("_type", "")) if isinstance(kind, dict) else ""
