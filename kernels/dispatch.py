"""`torch.ops.qbench.linear`: one operator for all weight formats, which eager code, torch.compile and export can see.

Which kernel serves is chosen at each call (see `qbench.kernels.registry`): `using` names one,
`served` tells which did. A weight crosses the operator's border as its parts and a description,
since an operator takes tensors and strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.formats import from_tensors
from qbench.kernels.cpu import products as cpu
from qbench.kernels.gpu import products as gpu
from qbench.kernels.registry import (
    Kernel,
    Request,
    choose,
    explain,
    named,
    record,
    register,
    served,
    using,
)

__all__ = ["describe", "explain", "linear", "request", "served", "using"]

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


def request(x: Tensor, weight: WeightFormat) -> Request:
    """What `explain` asks for: this product as the choice sees it."""
    return _request(x, list(weight.to_tensors().values()), _parsed(describe(weight)))


def _request(x: Tensor, parts: list[Tensor], stated: dict[str, Any]) -> Request:
    spec, (out, columns) = stated["spec"], stated["shape"]
    bits = parts[0].shape[0] if stated["format"] == "binary" else spec.get("bits")
    rows = x.numel() // columns
    return Request(
        stated["format"], bits, spec.get("group_size"), (out, columns), x.device.type, x.dtype, rows
    )


def _dequantized(
    x: Tensor, parts: list[Tensor], bias: Tensor | None, stated: Mapping[str, Any]
) -> Tensor:
    """The product with the weight dequantized and rounded to the dtype of x: what a dense layer holding it computes."""
    weight = _weight(parts, stated).dequantize().to(x.dtype)
    return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _linear(x: Tensor, parts: list[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    stated = _parsed(weight)
    out, columns = stated["shape"]
    if x.shape[-1] != columns or not x.is_floating_point():
        raise ConfigError(
            f"x {tuple(x.shape)} {x.dtype} does not fit a weight of shape {(out, columns)}; "
            f"it must be floating and end in {columns}"
        )
    if bias is not None and bias.shape != (out,):
        raise ConfigError(
            f"bias {tuple(bias.shape)} does not fit a weight of shape {(out, columns)}; expected ({out},)"
        )
    if x.device != parts[0].device:
        raise ConfigError(
            f"x is on {x.device}, and its weight on {parts[0].device}; move one of them"
        )
    kernel = choose(_request(x, parts, stated), named())
    record(kernel)
    return kernel.run(x, parts, bias, stated)


def _fake_linear(x: Tensor, parts: list[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], _parsed(weight)["shape"][0])


def _dequantize(parts: list[Tensor], weight: str) -> Tensor:
    found = _weight(parts, _parsed(weight)).dequantize()
    return (
        found.clone() if any(found is part for part in parts) else found
    )  # an operator may not return its input


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


def _weight(parts: list[Tensor], stated: Mapping[str, Any]) -> WeightFormat:
    return from_tensors(
        stated["format"], dict(zip(stated["parts"], parts, strict=True)), stated["spec"]
    )


@lru_cache(maxsize=4096)
def _parsed(weight: str) -> dict[str, Any]:
    return json.loads(weight)


register(
    Kernel(
        "dequantized", _dequantized, describe=lambda: "the weight dequantized, and a dense product"
    )
)
for _kernel in (*gpu.KERNELS, *cpu.KERNELS):
    register(_kernel)

_LIBRARY.impl("linear", _linear, "CompositeExplicitAutograd")
_LIBRARY.impl("dequantize", _dequantize, "CompositeExplicitAutograd")
torch.library.register_fake("qbench::linear", _fake_linear, lib=_LIBRARY)
torch.library.register_fake("qbench::dequantize", _fake_dequantize, lib=_LIBRARY)
torch.library.register_autograd(
    "qbench::linear", _backward, setup_context=_setup_context, lib=_LIBRARY
)
