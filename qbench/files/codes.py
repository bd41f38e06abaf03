"""What tells that a tensor is part of a quantized weight, where no config says so: dtype and name.

Read as numbers such tensors give another model, and counted as weights other bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.errors import StoreError

if TYPE_CHECKING:
    from qbench.files.shards import Entry

_DATA = ("weight", "_data")  # the last words of names that codes have in common with weights
_PARTS = (  # and those that only parts of quantized weights have
    "qweight",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "_weight_qdata",
    "SCB",
    "absmax",
)


def part_of_quantized(entries: Mapping[str, Entry]) -> str | None:
    """The name of the first tensor that is no plain number of a model; None where all are.

    entries: the headers of what is said to be unquantized. It is one of float8, a `.weight` or
    `._data` of integers, or a part by its name: of bitsandbytes, torchao, fp8 and others.
    """
    for name, entry in entries.items():
        word = name.rpartition(".")[2]
        of_codes = word in _DATA and not entry.dtype.is_floating_point
        eight_bits = entry.dtype.is_floating_point and entry.dtype.itemsize == 1
        if word in _PARTS or of_codes or eight_bits:
            return name
    return None


def refuse_codes(folder: Path, entries: Mapping[str, Entry]) -> None:
    """StoreError where a folder without a quantization_config holds a part of a quantized weight.

    entries: the headers of its tensors.
    """
    name = part_of_quantized(entries)
    if name is not None:
        raise StoreError(
            f"{folder} holds {name} ({entries[name].dtype}), part of a quantized weight, but its "
            "config.json has no quantization_config; put what the program that quantized it has "
            "written there"
        )
