"""`torch.ops.qbench.linear`: one operator for all weight formats, which eager code, torch.compile and export can see.

A weight crosses the operator's border as its parts and a description, since an operator takes tensors and strings.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.formats import from_tensors

_LIBRARY = torch.library.Library("qbench", "DEF")
_LIBRARY.define("linear(Tensor x, Tensor[] parts, Tensor? bias, str weight) -> Tensor")
_LIBRARY.define("dequantize(Tensor[] parts, str weight) -> Tensor")


def describe(weight: WeightFormat) -> str:
    """What the operator needs beside the parts."""
    stated = {"format": weight.format, "parts": list(weight.to_tensors()), "spec": weight.spec()}
    return json.dumps(stated | {"shape": list(weight.shape)})


def linear(x: Tensor, weight: WeightFormat, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None -> (..., out) in the dtype of x.

    ConfigError where the shapes do not fit.
    """
    return torch.ops.qbench.linear(x, list(weight.to_tensors().values()), bias, describe(weight))


def dequantized(x: Tensor, weight: WeightFormat, bias: Tensor | None) -> Tensor:
    """The product with the weight dequantized and rounded to the dtype of x: what a dense layer holding it computes."""
    return torch.nn.functional.linear(x, weight.dequantize().to(x.dtype), None if bias is None else bias.to(x.dtype))


def _linear(x: Tensor, parts: list[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    out, columns = _parsed(weight)["shape"]
    if x.shape[-1] != columns or not x.is_floating_point():
        raise ConfigError(
            f"x {tuple(x.shape)} {x.dtype} does not fit a weight of shape {(out, columns)}; "
            f"it must be floating and end in {columns}"
        )
    return dequantized(x, _weight(parts, weight), bias)


def _fake_linear(x: Tensor, parts: list[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], _parsed(weight)["shape"][0])


def _dequantize(parts: list[Tensor], weight: str) -> Tensor:
    found = _weight(parts, weight).dequantize()
    return found.clone() if any(found is part for part in parts) else found  # an operator may not return its input


def _fake_dequantize(parts: list[Tensor], weight: str) -> Tensor:
    return parts[0].new_empty(_parsed(weight)["shape"], dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, parts, bias, ctx.weight = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(*parts)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """For x and the bias; the weight is constant."""
    parts = list(ctx.saved_tensors)
    weight = torch.ops.qbench.dequantize(parts, ctx.weight)
    bias = grad.flatten(0, -2).sum(0) if ctx.has_bias else None
    return grad @ weight.to(grad.dtype), [None] * len(parts), bias, None


def _weight(parts: list[Tensor], weight: str) -> WeightFormat:
    stated = _parsed(weight)
    return from_tensors(stated["format"], dict(zip(stated["parts"], parts, strict=True)), stated["spec"])


@lru_cache(maxsize=4096)
def _parsed(weight: str) -> dict[str, Any]:
    return json.loads(weight)


_LIBRARY.impl("linear", _linear, "CompositeExplicitAutograd")
_LIBRARY.impl("dequantize", _dequantize, "CompositeExplicitAutograd")
torch.library.register_fake("qbench::linear", _fake_linear, lib=_LIBRARY)
torch.library.register_fake("qbench::dequantize", _fake_dequantize, lib=_LIBRARY)
torch.library.register_autograd("qbench::linear", _backward, setup_context=_setup_context, lib=_LIBRARY)
