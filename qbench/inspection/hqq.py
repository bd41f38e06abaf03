"""Folders that the package hqq writes (`save_to_safetensors`), which state no quant_method.

For a layer L with a weight of shape (out, in), b bits and groups of g inputs:

    L.W_q    codes, packed: 8/b in a byte, or of 3 bits ten in an int32, with rows filled up
    L.scale  float16 (out*in/g, 1)  scales
    L.zero   float16 (out*in/g, 1)  zero points
    L.shape  int (2,)               out and in, and other settings as small tensors

The shape is the only tensor whose data are read. Source: hqq, core/quantize.py, `HQQLinear`.
"""

from __future__ import annotations

from math import prod

from qbench.errors import StoreError
from qbench.files.shards import Shards
from qbench.inspection.foreign_headers import ADVICE, layers_required, with_small_parts
from qbench.inspection.pieces import Reading, dense_layers

CODES = "W_q"
_ITEMS = {CODES: "codes", "scale": "scales", "zero": "zero_points"}
_SMALL = (
    "nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float",
    "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise",
    "optimize", "round_zero",
)  # fmt: skip


def is_hqq(shards: Shards) -> bool:
    """Whether a folder without a quantization_config is one of hqq's."""
    return any(name.endswith(f".{CODES}") for name in shards.entries)


def read_hqq(shards: Shards) -> Reading:
    """StoreError where the tensors are not those of hqq."""
    weight_counts = {}
    for layer in layers_required(shards, CODES):
        shape = shards.tensor(f"{layer}.shape").tolist()
        if not isinstance(shape, list) or len(shape) != 2 or min(shape) < 1:
            raise StoreError(
                f"{shards.folder}: {layer}.shape is {shape}, not the two sizes of a matrix; "
                f"{ADVICE}"
            )
        weight_counts[layer] = prod(shape)
    pieces = list(with_small_parts(shards, _ITEMS, _SMALL, weight_counts))
    return Reading("hqq", pieces, dense_layers(pieces), method="hqq")
