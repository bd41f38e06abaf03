"""Unquantized weights, so that a layer left alone is a weight format like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qbench.formats.packing import axes, expect


@dataclass(frozen=True, eq=False)
class Dense:
    """A weight of shape (out, in) in full precision.

    weight (floating, (out, in)): as it is, in the dtype that it came in.

    StoreError where it is no such tensor.
    """

    format: ClassVar[str] = "dense"

    weight: Tensor

    def __post_init__(self) -> None:
        out, columns = axes("weight", self.weight, 2)
        expect("weight", self.weight, (out, columns))

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.weight.shape[0], self.weight.shape[1]

    @classmethod
    def kept(cls, weight: Tensor) -> Dense:
        """A copy of a layer's weight (out, in), in half precision where that loses nothing."""
        return cls(narrowed(weight).clone(memory_format=torch.contiguous_format))

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
        """The inverse of `to_tensors`. StoreError where the weight does not fit."""
        return cls(tensors["weight"], **spec)


def narrowed(tensor: Tensor) -> Tensor:
    """A tensor of any shape in bfloat16, else in float16, where that is exact; else as it is."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.bfloat16, torch.float16):
            if torch.equal(tensor.to(dtype).float(), tensor):
                return tensor.to(dtype)
    return tensor
