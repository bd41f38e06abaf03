"""Folders of auto-round in packings of its own (`quant_method: auto-round`), from headers alone.

Its `packing_format` says whose layout a layer has: that of AWQ where it names it, such as
`auto_round:auto_awq`, else that of GPTQ. Others, such as `auto_round:fp8` and `auto_round:mlx`,
have no tensors .qweight, and are refused by name. Source: auto_round,
export/export_to_autoround/export.py, and inference/convert_model.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qbench.errors import StoreError
from qbench.files.shards import Shards
from qbench.inspection.awq import read_awq
from qbench.inspection.foreign_headers import layers_with
from qbench.inspection.gptq import read_gptq
from qbench.inspection.pieces import Reading

_METHOD = "auto-round"


def read_auto_round(entry: Mapping[str, Any], shards: Shards) -> Reading:
    """entry: the quantization_config. StoreError where tensors or packing are not known ones."""
    packing = str(entry.get("packing_format"))
    if not layers_with(shards, "qweight"):
        raise StoreError(
            f"{shards.folder}: packing_format {packing!r} of auto-round is not inspected, as no "
            "tensor ends in .qweight; have auto-round write auto_round, auto_round:auto_gptq or "
            "auto_round:auto_awq"
        )
    if "awq" not in packing:
        return read_gptq(entry, shards)
    return replace(read_awq(entry, shards), source=_METHOD, method=_METHOD, format_version=packing)
