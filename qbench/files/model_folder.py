"""Where a model's folder says how it was quantized."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qbench.errors import StoreError
from qbench.files.shards import read_json

# Files beside config.json in which older programs put their settings -> the quant_method they mean.
SIDECARS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def quantization_settings(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a folder says of its quantization; None where it says nothing.

    config: the content of its config.json. Its `quantization_config` or `compression_config` counts
    first, then the files of `SIDECARS`, of which old folders have nothing else. StoreError where
    the entry is not an object.
    """
    for key in ("quantization_config", "compression_config"):
        entry = config.get(key)
        if entry is None:
            continue
        if not isinstance(entry, Mapping):
            raise StoreError(
                f"{folder / 'config.json'}: {key} is {type(entry).__name__}, not an object; "
                "copy it again"
            )
        return entry
    for name, method in SIDECARS.items():
        if (folder / name).is_file():
            return {"quant_method": method, **read_json(folder / name)}
    return None
