"""Fewer and larger kernels around a model's products, as every serving program has them.

transformers computes a norm in six kernels and a rotary embedding in ten. While a decoding step is
captured, a norm is `torch.nn.functional.rms_norm` where that is shown to compute the same, and the
embedding is compiled by torch. Packed and dense models are treated alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ROTARY = "apply_rotary_pos_emb"  # its name in the modules of transformers


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Inside, the model's norms and rotary embeddings are one kernel each, where they can be."""
    with ExitStack() as stack:
        for module in model.modules():
            norm = fused_norm(module)
            if norm is not None:
                stack.enter_context(_set(module, "forward", norm))
        homes = {sys.modules[type(module).__module__] for module in model.modules()}
        for home in homes:
            if callable(getattr(home, ROTARY, None)):
                stack.enter_context(_set(home, ROTARY, _compiled(getattr(home, ROTARY))))
        yield


def fused_norm(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """x (..., n) -> its norm in one kernel; None where the module is another norm, or none.

    It is probed: both have to give the same for random x, up to two roundings.
    """
    weight: Any = getattr(module, "weight", None)
    epsilon: Any = getattr(module, "variance_epsilon", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not isinstance(epsilon, float):
        return None

    def norm(x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, weight.shape, weight, epsilon)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, len(weight), generator=generator).to(weight)
    with torch.no_grad():
        expected = module(x).double()
        difference = (norm(x).double() - expected).norm()
    if difference > 2 * torch.finfo(weight.dtype).eps * expected.norm():
        return None
    return norm


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled by torch with its first call, once; the function itself where that fails."""
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False)

    def run(*arguments: Any, **options: Any) -> Any:
        nonlocal compiled
        try:
            return compiled(*arguments, **options)
        except Exception:  # no compiler is here, or it does not know what the function does
            compiled = function
            return function(*arguments, **options)

    return run


@contextmanager
def _set(owner: nn.Module | ModuleType, name: str, value: Any) -> Iterator[None]:
    """An attribute of the object itself, and afterwards what was there."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
