"""Products that read the same x of one row, as one: their weights one below the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qbench.checkpoint.packed_linear import QuantLinear
from qbench.kernels.description import parse, request_of
from qbench.kernels.gpu.cuda import bit_serial, products
from qbench.kernels.gpu.cuda.one_row import Output
from qbench.kernels.registry import choose, named


class Product(NamedTuple):
    """y of all layers (1, sum of out), one behind the other.

    run: x (1, in), or its planes of bits where `planes` says that they are read.
    """

    run: Callable[[Any], Tensor]
    planes: bool = False


def joined(layers: Sequence[nn.Module], dtype: torch.dtype) -> Product:
    """The product of x in this dtype with all these layers, which compute what they did.

    Dense layers become parts of one matrix, and keep no weight of their own. Packed ones that the
    CUDA kernels serve are copied into one. All others are called one after the other.
    """
    if all(type(layer) is nn.Linear for layer in layers):
        return _dense(layers)
    if all(isinstance(layer, QuantLinear) for layer in layers):
        product = _packed(layers, dtype)
        if product is not None:
            return product
    return Product(lambda x: torch.cat([layer(x) for layer in layers], 1))


def _dense(layers: Sequence[Any]) -> Product:
    if len(layers) == 1:
        weight = layers[0].weight
    else:
        weight = torch.cat([layer.weight for layer in layers])
        parts = weight.split([layer.out_features for layer in layers])
        for layer, part in zip(layers, parts, strict=True):
            layer.weight.data = part
    bias = _bias(layers, weight.dtype)
    return Product(lambda x: nn.functional.linear(x, weight, bias))


def _packed(layers: Sequence[Any], dtype: torch.dtype) -> Product | None:
    """None where the kernels `cuda` do not serve all of them, or they cannot be one."""
    weights = []
    for layer in layers:
        parts = list(layer.tensors().values())
        description = parse(layer.call)
        x = parts[0].new_empty(1, layer.in_features, dtype=dtype)
        if choose(request_of(x, parts, description), named()).name != "cuda":
            return None
        weights.append(products.packed_of(parts, description))
    packed = products.packed_together(weights)
    if packed is None:
        return None
    bias = _bias(layers, torch.float32)
    planes = packed.planes
    choice = packed.choice(1, dtype)
    if choice.kernel != bit_serial.NAME:
        return Product(lambda x: products.product(x, packed, bias, choice))

    def run(x: Output) -> Tensor:
        inputs = bit_serial.prepare(x, planes) if isinstance(x, Tensor) else x
        y = torch.empty(1, planes.shape[0], dtype=dtype, device=planes.words.device)
        bit_serial.launch(inputs, planes, bias, y, choice.config)
        return y

    return Product(run, True)


def _bias(layers: Sequence[Any], dtype: torch.dtype) -> Tensor | None:
    """Of all layers, with zeros for those that have none; None where no layer has one."""
    if all(layer.bias is None for layer in layers):
        return None
    device = next(layer.bias.device for layer in layers if layer.bias is not None)
    rows = []
    for layer in layers:
        zeros = torch.zeros(layer.out_features, device=device)
        rows.append((zeros if layer.bias is None else layer.bias).to(dtype))
    return torch.cat(rows)
