"""`torch.ops.qbench.linear`: one operator for products with weights of every format.

Eager code, torch.compile and export see the same operator. Each call chooses the kernel that
computes it (`qbench.kernels.registry`): `using` names one, and `served` says which ones did. An
operator takes tensors and strings, so a weight is passed as its parts and a description.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd import forward_ad

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.kernels.contract import Request
from qbench.kernels.description import describe, description_of, parse, request_of, weight_from
from qbench.kernels.registry import choose, explain, named, record, served, using

__all__ = ["describe", "explain", "linear", "multiply", "request", "served", "using"]

_texts: WeakKeyDictionary[WeightFormat, str] = WeakKeyDictionary()  # what `describe` gives
_LIBRARY = torch.library.Library("qbench", "DEF")
_LIBRARY.define("linear(Tensor x, Tensor[] parts, Tensor? bias, str weight) -> Tensor")
_LIBRARY.define("dequantize(Tensor[] parts, str weight) -> Tensor")


def linear(x: Tensor, weight: WeightFormat, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None -> (..., out) in the dtype of x.

    ConfigError where the shapes do not fit.
    """
    text = _texts.get(weight)
    if text is None:
        text = _texts[weight] = describe(weight)
    return multiply(x, list(weight.to_tensors().values()), bias, text)


def multiply(x: Tensor, parts: list[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    """`torch.ops.qbench.linear`, without the cost of an operator where it need not be one.

    To call an operator takes as long as to launch a kernel on a GPU.
    """
    if forward_ad._current_level >= 0:
        return _in_forward_mode(x, parts, bias, weight)
    if _watched(x, bias):
        return torch.ops.qbench.linear(x, parts, bias, weight)
    return _linear(x, parts, bias, weight)


def _watched(x: Tensor, bias: Tensor | None) -> bool:
    """Whether a product has to be an operator: it is traced, or differentiated, for example.

    Or x or the bias is a lazy tensor, such as a negative view; operators are given its values.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return True
    for each in (x,) if bias is None else (x, bias):
        if each.is_neg() or each._is_zerotensor():
            return True
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return True
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def request(x: Tensor, weight: WeightFormat) -> Request:
    """The request for this product of x (..., in), such as `explain` takes."""
    return request_of(x, list(weight.to_tensors().values()), description_of(weight))


def _linear(x: Tensor, parts: list[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    description = parse(weight)
    out, columns = description["shape"]
    if x.shape[-1:] != (columns,) or not x.is_floating_point():
        raise ConfigError(
            f"x {tuple(x.shape)} {x.dtype} does not fit a weight of shape {(out, columns)}; "
            f"it must be floating and end in {columns}"
        )
    if bias is not None and bias.shape != (out,):
        raise ConfigError(
            f"bias {tuple(bias.shape)} does not fit a weight of shape {(out, columns)}; "
            f"expected ({out},)"
        )
    if x.device != parts[0].device:
        raise ConfigError(
            f"x is on {x.device}, and its weight on {parts[0].device}; move one of them"
        )
    kernel = choose(request_of(x, parts, description), named())
    record(kernel)
    with _without_autocast(x):
        return kernel.run(x, parts, bias, description)


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A product is computed as the dtype of x says, whatever is made of dense ones around it."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _fake_linear(x: Tensor, parts: list[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], parse(weight)["shape"][0])


def _dequantize(parts: list[Tensor], weight: str) -> Tensor:
    dense = weight_from(parts, parse(weight)).dequantize()
    if any(dense is part for part in parts):
        return dense.clone()  # an operator may not return its input
    return dense


def _fake_dequantize(parts: list[Tensor], weight: str) -> Tensor:
    return parts[0].new_empty(parse(weight)["shape"], dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, parts, bias, ctx.weight = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(*parts)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """grad (..., out) -> gradients of x (..., in) and of the bias (out,); weights are constant."""
    parts = list(ctx.saved_tensors)
    bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.has_bias else None
    with _without_autocast(grad):
        weight = torch.ops.qbench.dequantize(parts, ctx.weight)
        return grad @ weight.to(grad.dtype), [None] * len(parts), bias, None


class _InForwardMode(torch.autograd.Function):
    """The operator with a derivative in forward mode, too, which custom operators cannot have."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, weight: str, *parts: Tensor) -> Tensor:
        return torch.ops.qbench.linear(x, list(parts), bias, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, bias, ctx.weight, *parts = inputs
        ctx.shape = output.shape
        ctx.has_bias = bias is not None
        ctx.save_for_backward(*parts)
        ctx.save_for_forward(*parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, parts, bias, _ = _backward(ctx, grad)
        return x, bias, None, *parts

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, bias: Tensor | None, *rest: Any) -> Tensor | None:
        """Tangents of x (..., in) and of the bias (out,), or None -> that of the product."""
        parts = list(ctx.saved_tensors)
        if x is None:
            return None if bias is None else bias.expand(ctx.shape)
        return multiply(x, parts, bias, ctx.weight)


# dynamo traces no function with a `jvp`; `torch.compiler.disable` would import it here and now.
@torch._disable_dynamo
def _in_forward_mode(x: Tensor, parts: list[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    return _InForwardMode.apply(x, bias, weight, *parts)


_LIBRARY.impl("linear", _linear, "CompositeExplicitAutograd")
_LIBRARY.impl("dequantize", _dequantize, "CompositeExplicitAutograd")
torch.library.register_fake("qbench::linear", _fake_linear, lib=_LIBRARY)
torch.library.register_fake("qbench::dequantize", _fake_dequantize, lib=_LIBRARY)
torch.library.register_autograd(
    "qbench::linear", _backward, setup_context=_setup_context, lib=_LIBRARY
)
