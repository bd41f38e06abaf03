"""Mixture-of-experts models: experts that transformers keeps as stacks of matrices become linear layers.

transformers 5 holds all experts of a layer in one parameter (experts, out, in), where nothing that
works on linear layers sees them. What the stacks mean is declared on the module by its decorator
`use_experts_implementation`, with which transformers itself computes experts of any family in its
own ways; the same declaration is read here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from qbench.errors import ModelError
from qbench.models.blocks import decoder_blocks, linears


class Expert(nn.Module):
    """One expert: gate_proj (absent where experts have no gate), up_proj and down_proj, named as checkpoints do.

    shared: the emptied module of transformers, one for all experts: it knows the activation, and
    may have a norm. interleaved: whether the activation takes outputs of gate and up in turns, or
    one after the other.
    """

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def __init__(self, layers: dict[str, nn.Linear], shared: nn.Module, interleaved: bool) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.shared = shared
        self.interleaved = interleaved

    def forward(self, hidden: Tensor) -> Tensor:
        """(tokens, width) -> the same shape."""
        shared: Any = self.shared
        if hasattr(self, "gate_proj"):
            gate, up = self.gate_proj(hidden), self.up_proj(hidden)
            both = (
                torch.stack((gate, up), -1).flatten(-2)
                if self.interleaved
                else torch.cat((gate, up), -1)
            )
            activated = shared._apply_gate(both)
        else:
            activated = shared.act_fn(self.up_proj(hidden))
        output: Tensor = self.down_proj(activated)
        return (
            shared.post_expert_norm(output)
            if getattr(shared, "has_post_expert_norm", False)
            else output
        )


class Experts(nn.ModuleList):
    """A list of experts in place of a module that had them as stacks; the same call and the same function."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(tokens, width), the experts of each token (tokens, k) and their weights -> the weighted sum.

        An expert that no token chose is not run. An index past the last expert stands for no
        expert.
        """
        chosen = top_k_index.flatten()
        order = chosen.argsort(stable=True)
        counts = torch.bincount(
            chosen, minlength=len(self) + 1
        ).tolist()  # one wait for the device, not one per expert
        factors = top_k_weights.flatten()
        result = torch.zeros_like(hidden_states)
        for expert, places in zip(self, order.split(counts), strict=False):
            if len(places):
                tokens = places // top_k_index.shape[1]
                output = expert(hidden_states[tokens]) * factors[places, None]
                result.index_add_(0, tokens, output.to(result.dtype))
        return result


def unfuse_experts(model: nn.Module, refuse: bool = True) -> int:
    """Replace every stack of experts by `Experts`, whose weights are views of it; returns how many were replaced.

    Works on the meta device, and a second time does nothing. refuse: ModelError naming the first
    module of a block that still holds weights outside its linear layers, which would silently stay
    in full precision.
    """
    found = 0
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            stacks = _declared(module)
            if stacks is not None:
                setattr(parent, name, _unfused(module, stacks))
                found += 1
    if refuse:
        _refuse_leftovers(model)
    return found


def _declared(module: Any) -> dict[str, Tensor] | None:
    """Stacks (experts, out, in) and biases (experts, out) by name; None where this is not what the module declares."""
    if not all(hasattr(module, key) for key in ("is_transposed", "has_bias", "_apply_gate")):
        return None
    gated = getattr(module, "has_gate", True)
    names = ("gate_up_proj" if gated else "up_proj", "down_proj")
    own = dict(module.named_parameters(recurse=False))
    if own.keys() != {*names, *(f"{name}_bias" for name in names if module.has_bias)}:
        return None
    up, down = (
        own[name].transpose(-2, -1) if module.is_transposed else own[name] for name in names
    )
    if not (
        up.dim() == down.dim() == 3
        and len(up) == len(down)
        and up.shape[1] == (1 + gated) * down.shape[2]
    ):
        return None
    return own | dict(zip(names, (up, down), strict=True))


def _unfused(module: Any, stacks: dict[str, Tensor]) -> Experts:
    """Experts whose weights are views of the stacks, of which the module is emptied."""
    interleaved = not getattr(module, "is_concatenated", True)
    trains = module.down_proj.requires_grad
    layers: dict[str, list[nn.Linear]] = {}
    for name in ("gate_up_proj", "up_proj", "down_proj"):
        if name not in stacks:
            continue
        stack, bias = stacks[name], stacks.get(f"{name}_bias")
        half = stack.shape[1] // 2
        parts: dict[str, slice] = {name: slice(None)}
        if name == "gate_up_proj":
            rows = (
                (slice(0, None, 2), slice(1, None, 2))
                if interleaved
                else (slice(0, half), slice(half, None))
            )
            parts = dict(zip(("gate_proj", "up_proj"), rows, strict=True))
        for part, some in parts.items():
            biases = [None] * len(stack) if bias is None else bias[:, some]
            layers[part] = [
                _linear(weight, b, trains) for weight, b in zip(stack[:, some], biases, strict=True)
            ]
    for name in list(module._parameters):
        delattr(module, name)
    count = len(layers["down_proj"])
    return Experts(
        [
            Expert({name: made[i] for name, made in layers.items()}, module, interleaved)
            for i in range(count)
        ]
    )


def _linear(weight: Tensor, bias: Tensor | None, trains: bool) -> nn.Linear:
    """A linear layer around an existing weight (out, in)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=trains)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=trains)
    return layer


def _refuse_leftovers(model: nn.Module) -> None:
    """ModelError where a block holds a stack of matrices, or a matrix larger than all of its linear layers."""
    prefix, blocks = decoder_blocks(model)
    largest = max(layer.weight.numel() for layer in linears(blocks).values())
    for name, module in blocks.named_modules():
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding, _ConvNd)):
            continue
        for key, value in module.named_parameters(recurse=False):
            if sum(size > 1 for size in value.shape) > 2 or value.numel() > largest:
                raise ModelError(
                    f"{prefix}.{name} ({type(module).__name__}) keeps {key} of shape {tuple(value.shape)} outside "
                    "linear layers, and such experts or mixers cannot be quantized yet; qbench quantizes linear layers "
                    "and the experts that transformers 5 declares with use_experts_implementation; choose another model"
                )
