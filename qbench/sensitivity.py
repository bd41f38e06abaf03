"""Bits that are divided between the layers of a model by what they cost its logits.

The cost of a width is the divergence that rounding the layer to nearest at that width causes, to
second order (`qbench.calibration.fisher`), whatever the method: what a method does better it does
at every width. `qbench.allocation` divides the budget.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qbench.allocation import allocate, average
from qbench.calibration.fisher import Moments, moments
from qbench.calibration.walk import Progress
from qbench.contracts import Scheme
from qbench.errors import ConfigError, ModelError
from qbench.models.blocks import quantizable, read_weight
from qbench.models.paging import is_paged
from qbench.registry import get_method
from qbench.scheme import LayerRule

TOKENS = 2048  # of the calibration text, at most, whose gradients are looked at,
LENGTH = 512  # in pieces of so many, since their logits are in memory at once


def allocated(
    model: Any,
    method: Any,
    scheme: Scheme,
    tokens: Tensor,
    device: torch.device,
    progress: Progress,
) -> tuple[Scheme, dict[str, Any]]:
    """The scheme with a rule for every layer that its budget is divided between; JSON-able facts.

    Layers that a rule of the scheme names keep what it says, and have no part in the budget.
    tokens: (samples, length). device: where weights are rounded; gradients are computed where the
    model is. ConfigError for a model that is read block by block.
    """
    if scheme.budget is None:
        return scheme, {}
    if is_paged(model):
        raise ConfigError(
            f"--bits {scheme.budget} needs the gradients of the whole model, which does not fit "
            "into the memory; give whole --bits, or a larger --memory"
        )
    layers = {}
    for name, layer in quantizable(model).items():
        if not scheme.has_rule(name):
            layers[name] = layer
    used = tokens[:, :LENGTH]
    used = used[: max(1, TOKENS // used.shape[1])]
    felt = moments(model, used, 0, lambda part, text: progress(0.0, text))
    sizes = {name: read_weight(layer).numel() for name, layer in layers.items()}
    costs: dict[str, dict[int, float]] = {}
    for place, (name, layer) in enumerate(layers.items()):
        progress(0.0, f"sensitivity of layer {place + 1}/{len(layers)}")
        weight = read_weight(layer).to(device).float()
        costs[name] = _costs(name, weight, felt[name], method, scheme)
    widths = allocate(sizes, costs, scheme.budget)
    facts = {
        "tokens": list(used.shape),
        "average": average(sizes, widths),
        "cost": sum(costs[name][bits] for name, bits in widths.items()),
        "layers": widths,
    }
    return _divided(scheme, widths), {"allocation": facts}


@torch.no_grad()
def _costs(
    name: str, weight: Tensor, felt: Moments, method: Any, scheme: Scheme
) -> dict[int, float]:
    """By width, the divergence in nats per token that rounding the layer to nearest costs.

    weight: (out, in) float32, of the layer of that name. felt: how much the logits feel its errors.
    ModelError where a cost is not finite.
    """
    rounding = get_method("rtn")
    costs = {}
    for bits in candidates(method, rounding, scheme):
        plain = Scheme(bits, scheme.group_size, scheme.symmetric)
        rounded = rounding.quantize_weight(weight, plain).dequantize()
        cost = felt.cost(weight - rounded)
        if not math.isfinite(cost):
            raise ModelError(
                f"{name} at {bits} bits is felt in the logits by {cost}, so that bits cannot be "
                "divided between layers; give whole --bits, or check the model and the "
                "calibration text"
            )
        costs[bits] = cost
    return costs


def candidates(method: Any, rounding: Any, scheme: Scheme) -> tuple[int, ...]:
    """The widths that layers may have: the two around the budget, and one more on either side."""
    low = max(method.bits[0], rounding.bits[0], scheme.bits - 2)
    high = min(method.bits[1], rounding.bits[1], scheme.bits + 1)
    return tuple(range(low, high + 1))


def allocation_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The facts of `allocated` in the manifest of a quantized model; empty where there are none."""
    return {"allocation": manifest["allocation"]} if "allocation" in manifest else {}


def with_allocation(scheme: Scheme | None, manifest: dict[str, Any]) -> Scheme | None:
    """The scheme of a quantized model, as `allocated` made it of what was asked."""
    if scheme is None or "allocation" not in manifest:
        return scheme
    return _divided(scheme, manifest["allocation"]["layers"])


def _divided(scheme: Scheme, widths: dict[str, int]) -> Scheme:
    rules = tuple(LayerRule(name, bits) for name, bits in widths.items())
    return replace(scheme, rules=(*scheme.rules, *rules), budget=None)
