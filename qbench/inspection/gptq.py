"""Folders in the layout of gptqmodel, AutoGPTQ and auto-round, read from headers alone.

They have the quant_method `gptq` or `auto-round`.

For a layer L with a weight of shape (out, in), b bits and `groups` groups of inputs:

    L.qweight  int32 (in*b/32, out)      codes
    L.qzeros   int32 (groups, out*b/32)  zero points
    L.scales   float16 (groups, out)     scales
    L.g_idx    int32 (in,)               the group of each input; older files leave it out

in is the length of g_idx where that is there, else what the stated b makes of the rows of qweight.
Source: gptqmodel, nn_modules/qlinear/__init__.py, `PackableQuantLinear`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbench.files.shards import Shards
from qbench.inspection.foreign_headers import (
    bits_along,
    group_order,
    integer_reading,
    layers_required,
    matrix,
    misfit,
    whole_number,
)
from qbench.inspection.pieces import Reading


def read_gptq(entry: Mapping[str, Any], shards: Shards) -> Reading:
    """entry: the quantization_config. StoreError where the tensors are not those of GPTQ."""
    bits = whole_number(entry, "bits", shards, range(1, 9))
    layers = layers_required(shards, "qweight")
    weight_counts = {layer: _weight_count(shards, layer, bits) for layer in layers}
    version = entry.get("checkpoint_format", entry.get("packing_format"))
    if version is not None:
        version = str(version)
    source = str(entry.get("quant_method", "gptq"))
    return integer_reading(source, entry, shards, weight_counts, bits, version)


def _weight_count(shards: Shards, layer: str, bits: int) -> int:
    """out * in of a layer."""
    codes = matrix(shards, f"{layer}.qweight")
    scales = matrix(shards, f"{layer}.scales")
    order = group_order(shards, f"{layer}.g_idx")
    column_bits = bits_along(codes, 0)
    inputs = order.shape[0] if order else column_bits // bits
    # g_idx has the last word on the inputs, and then a code may have from 1 to 8 bits; without
    # g_idx, the stated bits must divide the column.
    fits = inputs <= column_bits <= 8 * inputs
    if f"{layer}.g_idx" not in shards.entries:
        fits = fits and column_bits % bits == 0
    if not fits or codes.shape[1] != scales.shape[1]:
        raise misfit(
            f"{layer}.qweight", codes, f"{bits}-bit codes of GPTQ with scales {scales.shape}"
        )
    return inputs * codes.shape[1]
