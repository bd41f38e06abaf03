"""Linear layers whose weights stay packed: their buffers are the tensors of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qbench.checkpoint.config import stored_tensors
from qbench.contracts import WeightFormat
from qbench.errors import StoreError
from qbench.formats import from_tensors
from qbench.kernels.dispatch import describe, multiply
from qbench.kernels.sharing import share_inputs
from qbench.models.blocks import as_kept, is_linear, read_weight


class QuantLinear(nn.Module):
    """y = x W^T + bias with W in any weight format, through the kernels.

    Buffers: the parts of the weight, and the empty `weight` (see
    `qbench.checkpoint.config.stored_tensors`). Their dtypes never change: `model.half()` or
    `.to(dtype)` reach the bias alone, since a rounded scale would be another weight.
    """

    def __init__(self, weight: WeightFormat, bias: Tensor | None, transposed: bool = False) -> None:
        """weight (out, in), possibly on the meta device; bias (out,), or None.

        transposed: whether it stands for a Conv1D, which keeps a dense weight as (in, out).
        """
        super().__init__()
        self.transposed = transposed
        self.out_features, self.in_features = weight.shape
        self.kind = weight.format
        self.spec = weight.spec()
        self.parts = tuple(weight.to_tensors())
        self.call = describe(weight)
        for part, tensor in stored_tensors(weight).items():
            self.register_buffer(part, tensor)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def tensors(self) -> dict[str, Tensor]:
        """The parts of the weight, by name."""
        return {part: cast(Tensor, self._buffers[part]) for part in self.parts}

    def quantized(self) -> WeightFormat:
        """The weight; it shares the buffers."""
        return from_tensors(self.kind, self.tensors(), self.spec)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) floating -> (..., out) in the dtype of x."""
        return multiply(x, list(self.tensors().values()), self.bias, self.call)

    def extra_repr(self) -> str:
        """What `print(model)` says of this layer."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"format={self.kind}, {self.spec}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # The buffers step aside, so that nn.Module does not cast them, and then only move.
        buffers = cast("dict[str, Tensor]", dict(self._buffers))
        self._buffers.clear()
        super()._apply(fn, recurse)
        for part, tensor in buffers.items():
            moved = fn(tensor)
            self._buffers[part] = moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
        return self


def pack(model: nn.Module, weights: Mapping[str, WeightFormat]) -> None:
    """Put QuantLinear in the place of linear layers.

    weights: by the layers' full names. StoreError where a layer is not there or does not fit. A
    module with several of them lets them share an input that a kernel has to prepare.
    """
    parents: Counter[str] = Counter()
    for name, weight in weights.items():
        try:
            layer: Any = model.get_submodule(name)
        except AttributeError:
            layer = None
        if layer is None or not is_linear(layer):
            raise StoreError(
                f"quantized layer {name!r} is no linear layer of a {type(model).__name__}"
            )
        shape = tuple(read_weight(layer).shape)
        if shape != tuple(weight.shape):
            raise StoreError(
                f"layer {name!r} is {shape} in the model, but {tuple(weight.shape)} in the file"
            )
        bias = None if layer.bias is None else layer.bias.detach()
        _replace(model, name, QuantLinear(weight, bias, isinstance(layer, Conv1D)))
        parents[name.rpartition(".")[0]] += 1
    for parent, layers in parents.items():
        if layers > 1:
            share_inputs(model.get_submodule(parent))


def unpack(model: nn.Module, dtype: torch.dtype, names: Container[str] | None = None) -> None:
    """Put the layer that it stands for in the place of every QuantLinear, or of those named.

    Its weight is dequantized into `dtype`.
    """
    for name, layer in list(packed_layers(model)):
        if names is not None and name not in names:
            continue
        dense = _empty(layer)
        weight = as_kept(dense, layer.quantized().dequantize().to(dtype)).contiguous()
        dense.weight = nn.Parameter(weight, requires_grad=False)
        dense.register_parameter("bias", layer.bias)
        _replace(model, name, dense)


def _empty(layer: QuantLinear) -> Any:
    """The dense layer that a QuantLinear stands for, on the meta device."""
    with torch.device("meta"):
        if layer.transposed:
            return Conv1D(layer.out_features, layer.in_features)
        return nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)


def packed_layers(model: nn.Module) -> Iterator[tuple[str, QuantLinear]]:
    """Every QuantLinear of a model, with its full name."""
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear):
            yield name, layer


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
