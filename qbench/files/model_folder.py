"""What may be read of a model's folder, and where it says how it was quantized.

A folder from elsewhere may hold links to other places of the machine, pipes and devices. Every file
that is read has to be an ordinary one, and has to lie in the folder itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qbench.errors import StoreError
from qbench.files.shards import home_of, read_json

# Files beside config.json in which older programs put their settings -> the quant_method they mean.
SIDECARS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def require_ordinary_files(folder: Path) -> None:
    """StoreError where something in a folder is neither an ordinary file in it nor a folder.

    Links of the hub's cache lead from snapshots/REVISION into blobs, and stay allowed.
    """
    home = home_of(folder)
    for path in sorted(folder.iterdir()):
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # a link to nothing, or to itself
            raise StoreError(
                f"{path} is a link that leads nowhere ({type(error).__name__}); remove it"
            ) from None
        if not target.is_relative_to(home):
            raise StoreError(
                f"{path} is a link out of its folder, to {target}; copy the file there instead"
            )
        if not (target.is_file() or target.is_dir()):
            raise StoreError(f"{path} is no ordinary file (a pipe, socket or device); remove it")


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
