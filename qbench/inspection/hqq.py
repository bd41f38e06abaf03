"""Folders that the package hqq writes (`save_to_safetensors`), which state no quant_method.

For a layer L with a weight of shape (out, in), b bits and groups of g inputs:

    L.W_q    codes, packed: 8/b in a byte, or of 3 bits ten in an int32, with rows filled up
    L.scale  float16 (out*in/g, 1)  scales
    L.zero   float16 (out*in/g, 1)  zero points
    L.shape  int (2,)               out and in, and other settings as small tensors

The data of the shape and of nbits are the only ones that are read, and held against the size of
W_q. Source: hqq, core/quantize.py, `HQQLinear`.
"""

from __future__ import annotations

from math import prod

from qbench.errors import StoreError
from qbench.files.shards import Shards
from qbench.inspection.foreign_headers import (
    ADVICE,
    layers_required,
    misfit,
    with_small_parts,
)
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
    weight_counts = {
        layer: _weight_count(shards, layer) for layer in layers_required(shards, CODES)
    }
    pieces = list(with_small_parts(shards, _ITEMS, _SMALL, weight_counts))
    return Reading("hqq", pieces, dense_layers(pieces), method="hqq")


def _weight_count(shards: Shards, layer: str) -> int:
    """out * in of a layer; StoreError where its shape is none, or has more codes than W_q holds."""
    header = shards.entries.get(f"{layer}.shape")
    shape: list[int] = []
    if header is not None and header.shape == (2,) and not header.dtype.is_floating_point:
        shape = shards.tensor(f"{layer}.shape").tolist()
    if len(shape) != 2 or min(shape) < 1:
        stated = shape or (header.shape if header else "missing")
        raise StoreError(
            f"{shards.folder}: {layer}.shape is {stated}, not the two sizes of a matrix; {ADVICE}"
        )
    codes = shards.entries[f"{layer}.{CODES}"]
    bits = _stated_bits(shards, layer)
    if prod(shape) * bits > 8 * codes.nbytes:
        raise misfit(f"{layer}.{CODES}", codes, f"{shape[0]} x {shape[1]} codes of {bits:g} bits")
    return prod(shape)


def _stated_bits(shards: Shards, layer: str) -> float:
    """The layer's nbits, and 1, the least that there is, where it states none."""
    header = shards.entries.get(f"{layer}.nbits")
    if header is None or prod(header.shape) != 1:
        return 1.0
    stated = float(shards.tensor(f"{layer}.nbits"))
    return stated if 1 <= stated <= 8 else 1.0
