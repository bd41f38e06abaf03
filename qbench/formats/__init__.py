"""Weight formats: how a quantized weight is stored, what it means, and how many bits it takes.

Each format is a frozen dataclass that fulfils `qbench.contracts.WeightFormat`: its tensors are
stored, `dequantize` defines the weight that they stand for, and `spec` is what reading needs beside
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import MethodError, StoreError, unknown_name
from qbench.formats.binary import Binary
from qbench.formats.dense import Dense
from qbench.formats.lattice import Lattice
from qbench.formats.rotated_binary import RotatedBinary
from qbench.formats.uniform import Uniform

__all__ = [
    "FORMATS",
    "Binary",
    "Dense",
    "Lattice",
    "RotatedBinary",
    "Uniform",
    "bits_per_weight",
    "from_tensors",
    "require_storable",
]

FORMATS: dict[str, type[WeightFormat]] = {
    kind.format: kind for kind in (Uniform, Binary, RotatedBinary, Lattice, Dense)
}


def from_tensors(name: str, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> WeightFormat:
    """A weight of format `name` from its stored parts.

    tensors, spec: from `to_tensors` and `spec` of such a weight. StoreError where there is no such
    format, or where the parts do not fit.
    """
    if name not in FORMATS:
        raise StoreError(unknown_name("weight format", name, FORMATS))
    try:
        return FORMATS[name].from_tensors(tensors, spec)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"a {name!r} weight cannot be built from parts {sorted(tensors)} and {dict(spec)}: "
            f"{error}"
        ) from None


def require_storable(weight: WeightFormat) -> None:
    """MethodError where a weight's class is not exactly one of FORMATS.

    Reading would give a weight of that class, and what another one computes would be lost.
    """
    for part in (weight, getattr(weight, "coding", None)):  # of what is rotated, the coding
        if part is not None and FORMATS.get(getattr(part, "format", "")) is not type(part):
            known = ", ".join(kind.__name__ for kind in FORMATS.values())
            raise MethodError(
                f"the quantized weight is a {type(part).__name__}, which cannot be saved; return "
                f"exactly one of {known} of qbench.formats, and nothing derived from them"
            )


def bits_per_weight(weights: Iterable[WeightFormat]) -> dict[str, float]:
    """Stored bits per quantized weight, over all `weights` together.

    Measured from the tensors' bytes: `total`, and one entry per part in alphabetical order. Empty
    where there are no weights.
    """
    bits: dict[str, int] = {}
    count = 0
    for weight in weights:
        out, columns = weight.shape
        count += out * columns
        for part, tensor in weight.to_tensors().items():
            bits[part] = bits.get(part, 0) + 8 * tensor.nbytes
    if not count:
        return {}
    per_weight = {"total": sum(bits.values()) / count}
    for part in sorted(bits):
        per_weight[part] = bits[part] / count
    return per_weight
