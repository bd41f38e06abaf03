"""Unquantized weights, so that a layer left alone is a weight format like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Dense:
    """A weight of shape (out, in) in full precision.

    weight (floating, (out, in)): as it is, in the dtype that it came in.
    """

    format: ClassVar[str] = "dense"

    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.weight.shape[0], self.weight.shape[1]

    def dequantize(self) -> Tensor:
        """The weight, (out, in) float32."""
        return self.weight.float()

    def to_tensors(self) -> dict[str, Tensor]:
        """What is stored: the weight itself."""
        return {"weight": self.weight}

    def spec(self) -> dict[str, Any]:
        """Empty: reading needs nothing beside the tensor."""
        return {}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> Dense:
        """The inverse of `to_tensors`."""
        return cls(tensors["weight"], **spec)
