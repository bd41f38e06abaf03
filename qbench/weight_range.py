"""Which weights the methods can compute with, asked before every call of a verb.

A weight alone has to be a dense matrix of floating numbers, and a method is given it without
gradient, and with its signs in memory.

Methods compute in float32, with floors below which a range counts as none, and with squares. So
weights far from 1 would come back as zeros, or overflow, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any

from qbench.contracts import LinearStats, verb_of
from qbench.errors import ConfigError, MethodError

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-8  # of a layer's largest weight; below 1e-9 scales meet the floor of the methods
LARGEST = 1e15  # above 1e19 squares overflow float32
_MARK = "__refuses_extremes__"


def require_computable(weight: Tensor, name: str = "the weight") -> None:
    """MethodError naming the weight where it holds NaN or infinity, or its largest is out of range.

    A weight of zeros is within it, and one without data is taken on trust.
    """
    ends = require_finite(weight, name)
    if ends is None:
        return
    low, high = ends
    largest = max(-low, high)
    if largest and not SMALLEST <= largest <= LARGEST:
        raise MethodError(
            f"the largest weight of {name} is {largest:.3g}; methods compute in "
            f"float32 within {SMALLEST:g} to {LARGEST:g}: scale the layer"
        )


def require_finite(weight: Tensor, name: str) -> tuple[float, float] | None:
    """The ends of a weight's range; MethodError naming it where it holds NaN or infinity.

    None for one without data, which is taken on trust.
    """
    if weight.is_meta or not weight.numel():
        return None
    # The ends of the range are not finite where any weight is not: one pass, no temporaries.
    low, high = (float(end) for end in weight.aminmax())
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        bad = int((~weight.isfinite()).sum())
        raise MethodError(
            f"{bad} of the {weight.numel()} weights of {name} are NaN or infinite; "
            "repair the checkpoint"
        )
    return low, high


def _as_given(weight: Any) -> Tensor:
    """A weight as methods compute with it; ConfigError where it is no dense floating matrix."""
    import torch

    if not isinstance(weight, torch.Tensor):
        raise ConfigError(f"the weight is a {type(weight).__name__}; give a tensor (out, in)")
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    has_values = weight.layout == torch.strided and not weight.is_meta and weight.numel() > 0
    if weight.dtype not in dtypes or weight.ndim != 2 or not has_values:
        layout = "" if weight.layout == torch.strided else f" {weight.layout}"
        place = " on the meta device" if weight.is_meta else ""
        raise ConfigError(
            f"the weight, {tuple(weight.shape)} {weight.dtype}{layout}{place}, is none that "
            "methods quantize; give a dense matrix (out, in) with data, in float16, bfloat16, "
            "float32 or float64"
        )
    return weight.detach().resolve_neg()


def _require_finite_hessian(hessian: Tensor) -> None:
    if hessian.is_meta or not hessian.numel():
        return
    low, high = hessian.aminmax()
    if not (low.isfinite() and high.isfinite()):
        bad = int((~hessian.isfinite()).sum())
        raise MethodError(
            f"{bad} of the {hessian.numel()} numbers of the inputs' Hessian are NaN or infinite; "
            "compute it from inputs that are finite, and whose squares are"
        )


def guarded(cls: type) -> type:
    """A method's class, whose verb from now on refuses what it cannot compute with."""
    verb = verb_of(cls)
    if verb == "worker_settings":  # it is called with no weights
        return cls
    inner = getattr(cls, verb)
    if hasattr(inner, _MARK):  # by an earlier call, or inherited from a method that is
        return cls

    keyword = "block" if verb == "quantize_block" else "weight"

    @wraps(inner)
    def checked(self: Any, *given: Any, **named: Any) -> Any:
        first, *others = given or (named.pop(keyword, None),)
        if verb != "quantize_block":
            first = _as_given(first)
        for name, weight in _weights(first):
            require_computable(weight, name)
        for statistics in (*others, *named.values()):
            if isinstance(statistics, LinearStats):
                _require_finite_hessian(statistics.hessian)
        return inner(self, first, *others, **named)

    setattr(checked, _MARK, True)
    setattr(cls, verb, checked)
    return cls


def _weights(first: Any) -> Iterator[tuple[str, Any]]:
    """The weights that a verb is called with first: one, or the matrices of a block."""
    if not hasattr(first, "named_parameters"):
        yield "the weight", first
        return
    for name, parameter in first.named_parameters():
        if parameter.ndim == 2:
            yield name, parameter.detach()
