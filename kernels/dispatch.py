"""`torch.ops.qbench.linear`: one operator for products with weights of every format.

Eager code, torch.compile and export see the same operator. Each call chooses the kernel that
computes it (`qbench.kernels.registry`): `using` names one, and `served` says which ones did. An
operator takes tensors and strings, so a weight is passed as its parts and a description.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd import forward_ad

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.kernels.contract import Description, Request
from qbench.kernels.description import describe, description_of, parse, request_of, weight_from
from qbench.kernels.registry import choose, named, record, served, using

__all__ = ["describe", "linear", "multiply", "request", "served", "using"]

_texts: WeakKeyDictionary[WeightFormat, str] = WeakKeyDictionary()  # what `describe` gives
_LIBRARY = torch.library.Library("qbench", "DEF")
_LIBRARY.define("linear(Tensor x, Tensor[] parts, Tensor? bias, str weight) -> Tensor")
_LIBRARY.define("dequantize(Tensor[] parts, str weight) -> Tensor")


def linear(x: Tensor, weight: WeightFormat, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None -> (..., out) in the dtype of x.

    ConfigError where x or the bias does not fit: its shape, dtype or device, or it is no tensor.
    """
    text = _texts.get(weight)
    if text is None:
        text = _texts[weight] = describe(weight)
    return multiply(x, list(weight.to_tensors().values()), bias, text)


def multiply(x: Tensor, parts: list[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    """`torch.ops.qbench.linear`, without the cost of an operator where it need not be one.

    To call an operator takes as long as to launch a kernel on a GPU.

    x (..., in), bias (out,) or None -> (..., out) in the dtype of x. parts: the weight's tensors,
    in the order of its `to_tensors`. weight: what `describe` says of it. ConfigError as `linear`.
    """
    _require_tensor("x", x)
    if bias is not None:
        _require_tensor("the bias", bias)
    if _transformed():
        return _transformable(x, parts, bias, weight)
    if _watched(x, parts, bias):
        return torch.ops.qbench.linear(x, parts, bias, weight)
    return _linear(x, parts, bias, weight)


def _require_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ConfigError(f"{name} is a {type(value).__name__}; give a tensor, of floating numbers")


def _transformed() -> bool:
    """Whether a product is inside of a transform of torch.func, or of derivatives in forward mode.

    Custom operators do not know these, apart from `functionalize`.
    """
    innermost = None
    if not torch.compiler.is_compiling():
        innermost = torch._C._functorch.peek_interpreter_stack()
    if innermost is None:
        return bool(forward_ad._current_level >= 0)
    return innermost.key() != torch._C._functorch.TransformType.Functionalize


def _watched(x: Tensor, parts: list[Tensor], bias: Tensor | None) -> bool:
    """Whether a product has to be an operator: it is traced, or differentiated, for example.

    Or one of the tensors is lazy, such as a negative view; operators are given its values.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return True
    for each in (x,) if bias is None else (x, bias):
        if each.is_neg() or each._is_zerotensor():
            return True
    for part in parts:
        if part.is_neg():
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
    """The request for this product of x (..., in), as `choose` of the registry takes it."""
    return request_of(x, list(weight.to_tensors().values()), description_of(weight))


def _linear(x: Tensor, parts: list[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    description = parse(weight)
    _require_fit(x, parts, bias, description)
    kernel = choose(request_of(x, parts, description), named())
    record(kernel)
    with _without_autocast(x):
        return kernel.run(x, parts, bias, description)


def _require_fit(
    x: Tensor, parts: list[Tensor], bias: Tensor | None, description: Description
) -> None:
    """ConfigError where these are no arguments of a product."""
    out, columns = description["shape"]
    if x.shape[-1:] != (columns,) or not x.is_floating_point() or x.layout != torch.strided:
        raise ConfigError(
            f"x {tuple(x.shape)} {_kind(x)} does not fit a weight of shape {(out, columns)}; "
            f"it must be floating, dense and end in {columns}"
        )
    if bias is not None and (
        bias.shape != (out,) or not bias.is_floating_point() or bias.layout != torch.strided
    ):
        raise ConfigError(
            f"bias {tuple(bias.shape)} {_kind(bias)} does not fit a weight of shape "
            f"{(out, columns)}; it must be floating, dense and of shape ({out},)"
        )
    device = x.device
    for part in parts:
        if part.device != device:
            raise ConfigError(
                f"x is on {device}, and its weight on {part.device}; move one of them"
            )
    if bias is not None and bias.device != device:
        raise ConfigError(f"x is on {device}, and the bias on {bias.device}; move one of them")


def _kind(tensor: Tensor) -> str:
    """The dtype, and the layout where it is not the usual one, in words."""
    layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
    return f"{tensor.dtype}{layout}"


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A product is computed as the dtype of x says, whatever is made of dense ones around it."""
    device = x.device.type
    if not x.is_meta and torch.is_autocast_enabled(device):  # which refuses to tell of meta
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


class _Transformable(torch.autograd.Function):
    """The operator for torch.func, and with a derivative in forward mode."""

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
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        x, bias, weight, *parts = inputs
        x_dim, bias_dim, _, *part_dims = in_dims
        return _batched(multiply, (x_dim, part_dims, bias_dim), x, parts, bias, weight)

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
        innermost = torch._C._functorch.peek_interpreter_stack()
        if innermost is not None and innermost.key() == torch._C._functorch.TransformType.Vmap:
            # A batch of tangents, where autograd asks inside of vmap: an operator alone has a rule.
            return torch.ops.qbench.linear(x, parts, bias, ctx.weight)
        return multiply(x, parts, bias, ctx.weight)


def _batched(
    product: Callable[..., Tensor],
    dims: tuple[Any, ...],
    x: Tensor,
    parts: list[Tensor],
    bias: Tensor | None,
    weight: str,
) -> tuple[Tensor, int]:
    """The rule of vmap: a batch of x is more rows. A batch of biases is added by itself.

    dims: where the batch is in x, in each of the parts and in the bias, and None where it is not.
    """
    x_dim, part_dims, bias_dim, *_ = dims
    if any(dim is not None for dim in part_dims):
        raise ConfigError("a batch of weights has no product; call vmap over x or the bias alone")
    if x_dim is not None:
        x = x.movedim(x_dim, 0)
    if bias is None or bias_dim is None:
        return product(x, parts, bias, weight), 0
    y = product(x, parts, None, weight)  # (batch, ..., out), or (..., out) for all biases
    biases = bias.movedim(bias_dim, 0)  # (batch, out)
    rows = y.ndim - 1 - (x_dim is not None)  # axes between those of the batch and the outputs
    return y + biases.view(len(biases), *[1] * rows, -1).to(y.dtype), 0


def _operator_batched(info: Any, dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
    return _batched(torch.ops.qbench.linear, dims, *inputs)


# dynamo traces no function with a `jvp`; `torch.compiler.disable` would import it here and now.
@torch._disable_dynamo
def _transformable(x: Tensor, parts: list[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    return _Transformable.apply(x, bias, weight, *parts)


_LIBRARY.impl("linear", _linear, "CompositeExplicitAutograd")
_LIBRARY.impl("dequantize", _dequantize, "CompositeExplicitAutograd")
torch.library.register_fake("qbench::linear", _fake_linear, lib=_LIBRARY)
torch.library.register_fake("qbench::dequantize", _fake_dequantize, lib=_LIBRARY)
torch.library.register_autograd(
    "qbench::linear", _backward, setup_context=_setup_context, lib=_LIBRARY
)
torch.library.register_vmap("qbench::linear", _operator_batched, lib=_LIBRARY)
