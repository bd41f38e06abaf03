"""Folders in 4 bits of bitsandbytes (`quant_method: bitsandbytes`), read from headers alone.

For a layer L with a weight of shape (out, in) in blocks of g weights:

    L.weight                   (bytes, 1) of any dtype, mostly uint8  two codes in a byte
    L.weight.absmax            float32, or uint8 where it is quantized in turn  scales of blocks
    L.weight.nested_absmax     float32  scales of the scales
    L.weight.quant_map, .nested_quant_map  float32  the levels
    L.weight.quant_state...    uint8    settings as JSON

Source: bitsandbytes, functional.py, `QuantState.as_dict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbench.errors import StoreError
from qbench.files.shards import Shards
from qbench.inspection.foreign_headers import (
    ADVICE,
    layers_required,
    parameters_of,
    with_small_parts,
)
from qbench.inspection.pieces import Reading, dense_layers

CODES_PER_BYTE = 2
_ITEMS = {
    "weight": "codes",
    "weight.absmax": "scales",
    "weight.nested_absmax": "scales",
    "weight.quant_map": "codebooks",
    "weight.nested_quant_map": "codebooks",
}
_SMALL = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")


def read_bitsandbytes(entry: Mapping[str, Any], shards: Shards) -> Reading:
    """entry: the quantization_config. StoreError where it is not one of 4 bits."""
    if not entry.get("load_in_4bit", entry.get("_load_in_4bit")):
        raise StoreError(
            f"{shards.folder}: only models of bitsandbytes in 4 bits can be read, and this states "
            f"load_in_4bit={entry.get('load_in_4bit')!r}"
        )
    weight_counts = {}
    for layer in layers_required(shards, "weight.absmax"):
        codes = shards.entries.get(f"{layer}.weight")
        if codes is None or codes.shape[1:] != (1,):
            raise StoreError(f"{shards.folder}: {layer}.weight holds no packed codes; {ADVICE}")
        weight_counts[layer] = CODES_PER_BYTE * codes.nbytes
    pieces = list(with_small_parts(shards, _ITEMS, _SMALL, weight_counts))
    return Reading(
        source="bitsandbytes",
        pieces=pieces,
        dense=dense_layers(pieces),
        method=str(entry.get("bnb_4bit_quant_type", "4bit")),
        parameters=parameters_of(entry),
        stated_bits=4.0,
    )
