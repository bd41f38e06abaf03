"""Folders in the layouts of autoawq (`quant_method: awq`), read from headers alone.

For a layer L with a weight of shape (out, in), b bits and `groups` groups of inputs, in the layout
`gemm`:

    L.qweight  int32 (in, out*b/32)      codes
    L.qzeros   int32 (groups, out*b/32)  zero points
    L.scales   float16 (groups, out)     scales

out is that of the scales. The layouts `gemv` and `gemv_fast` order the words of qweight otherwise;
there, codes have the 4 bits that autoawq has alone. Source: autoawq, awq/modules/linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbench.files.shards import Shards
from qbench.inspection.foreign_headers import (
    bits_along,
    integer_reading,
    layers_required,
    matrix,
    misfit,
    whole_number,
)
from qbench.inspection.pieces import Reading

_BITS_OF_GEMV = 4


def read_awq(entry: Mapping[str, Any], shards: Shards) -> Reading:
    """entry: the quantization_config. StoreError where the tensors are not those of AWQ."""
    # autoawq writes w_bit in its own file, transformers writes bits
    bits = whole_number(entry, "bits" if "bits" in entry else "w_bit", shards, range(1, 9))
    layout = str(entry.get("version", entry.get("format", "gemm"))).lower()
    layers = layers_required(shards, "qweight")
    weight_counts = {layer: _weight_count(shards, layer, bits, layout) for layer in layers}
    return integer_reading("awq", entry, shards, weight_counts, bits, layout)


def _weight_count(shards: Shards, layer: str, bits: int, layout: str) -> int:
    """out * in of a layer."""
    codes = matrix(shards, f"{layer}.qweight")
    scales = matrix(shards, f"{layer}.scales")
    if layout.startswith("gemv"):
        return codes.nbytes * 8 // _BITS_OF_GEMV
    outputs = scales.shape[1]
    if not outputs <= bits_along(codes, 1) <= 8 * outputs:
        raise misfit(
            f"{layer}.qweight", codes, f"{bits}-bit codes of AWQ with scales {scales.shape}"
        )
    return codes.shape[0] * outputs
