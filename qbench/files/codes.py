"""What tells that a tensor is part of a quantized weight, where no config says so: dtype and name.

Read as numbers such tensors give another model, and counted as weights other bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

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
