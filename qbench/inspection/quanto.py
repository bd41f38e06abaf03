"""Folders that optimum-quanto writes, which state no quant_method, in 2 or 4 bits.

For a layer L with a weight of shape (out, in), b bits and groups of g inputs:

    L.weight._data._data  uint8 (out*in/g * b/8, g)  codes, 8/b in a byte, rows filled up
    L.weight._scale       floating (out*in/g, 1)     scales
    L.weight._shift       floating (out*in/g, 1)     zero points times the scale
    L.input_scale, L.output_scale                    of activations, 1 where these are not quantized

Source: optimum-quanto, tensor/weights/qbits.py and nn/qmodule.py.
"""

from __future__ import annotations

from qbench.files.shards import Shards
from qbench.inspection.foreign_headers import layers_required, matrix, with_small_parts
from qbench.inspection.pieces import Reading, dense_layers

CODES = "weight._data._data"
_ITEMS = {CODES: "codes", "weight._scale": "scales", "weight._shift": "zero_points"}
_SMALL = ("input_scale", "output_scale")


def is_quanto(shards: Shards) -> bool:
    """Whether a folder without a quantization_config is one of optimum-quanto's."""
    return any(name.endswith(f".{CODES}") for name in shards.entries)


def read_quanto(shards: Shards) -> Reading:
    """StoreError where the tensors are not those of optimum-quanto."""
    weight_counts = {}
    for layer in layers_required(shards, CODES):
        groups = matrix(shards, f"{layer}.weight._scale").shape[0]
        weight_counts[layer] = groups * matrix(shards, f"{layer}.{CODES}").shape[1]
    pieces = list(with_small_parts(shards, _ITEMS, _SMALL, weight_counts))
    return Reading("quanto", pieces, dense_layers(pieces), method="quanto")
