"""No quantization: the unquantized model, a row of every table and the reference for divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qbench.contracts import Scheme
from qbench.formats import Dense


@dataclass(frozen=True)
class Unquantized:
    """Keep the weight as it is."""

    name: ClassVar[str] = "none"
    paper: ClassVar[str] = "The model as published"
    format: ClassVar[str] = "dense"
    bits: ClassVar[tuple[int, int]] = (1, 16)
    symmetric: ClassVar[bool] = True

    def quantize_weight(self, weight: Tensor, scheme: Scheme) -> Dense:
        """weight (out, in), floating: -> Dense, a copy in the same dtype."""
        return Dense(weight.clone())
