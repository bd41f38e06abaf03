"""Mixture-of-experts models: experts that transformers keeps in stacks become linear layers.

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
    """One expert: gate_proj (absent where experts have no gate), up_proj and down_proj.

    The names are those of checkpoints. shared: the emptied module of transformers, one for all
    experts: it knows the activation, and may have a norm. interleaved: whether the activation takes
    outputs of gate and up in turns, or one after the other.
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
            activated = shared._apply_gate(self._gate_and_up(hidden))
        else:
            activated = shared.act_fn(self.up_proj(hidden))
        output: Tensor = self.down_proj(activated)
        if getattr(shared, "has_post_expert_norm", False):
            output = shared.post_expert_norm(output)
        return output

    def _gate_and_up(self, hidden: Tensor) -> Tensor:
        """(tokens, width) -> (tokens, 2 * intermediate), in the order that the activation takes."""
        gate = self.gate_proj(hidden)
        up = self.up_proj(hidden)
        if self.interleaved:
            return torch.stack((gate, up), -1).flatten(-2)
        return torch.cat((gate, up), -1)


class Experts(nn.ModuleList):
    """A list of experts in place of a module that had them as stacks: same call, same function."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The sum of the chosen experts' outputs, each times its weight: (tokens, width).

        hidden_states (floating, (tokens, width)): what the experts see. top_k_index (int64,
        (tokens, k)): the experts of each token; past the last one stands for none. top_k_weights
        (floating, (tokens, k)): their weights. An expert that no token chose is not run.
        """
        chosen = top_k_index.flatten()  # (tokens * k,)
        order = chosen.argsort(stable=True)
        # All counts at once: the device is waited for once, not once per expert.
        counts = torch.bincount(chosen, minlength=len(self) + 1).tolist()
        factors = top_k_weights.flatten()
        result = torch.zeros_like(hidden_states)
        for expert, places in zip(self, order.split(counts), strict=False):
            if len(places):
                tokens = places // top_k_index.shape[1]
                output = expert(hidden_states[tokens]) * factors[places, None]
                result.index_add_(0, tokens, output.to(result.dtype))
        return result


def unfuse_experts(model: nn.Module, refuse: bool = True) -> int:
    """Replace every stack of experts by `Experts`, whose weights are views of it.

    Returns how many were replaced. Works on the meta device, and a second time does nothing.
    refuse: ModelError naming the first module of a block that still holds weights outside its
    linear layers, which would silently stay in full precision.
    """
    replaced = 0
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            stacks = _declared_stacks(module)
            if stacks is not None:
                setattr(parent, name, _unfused(module, stacks))
                replaced += 1
    if refuse:
        _refuse_leftovers(model)
    return replaced


def _declared_stacks(module: Any) -> dict[str, Tensor] | None:
    """Stacks (experts, out, in) and their biases (experts, out) by name.

    None where the module does not declare any, or is not what it declares.
    """
    for attribute in ("is_transposed", "has_bias", "_apply_gate"):
        if not hasattr(module, attribute):
            return None
    gated = getattr(module, "has_gate", True)
    first = "gate_up_proj" if gated else "up_proj"
    expected = {first, "down_proj"}
    if module.has_bias:
        expected |= {f"{first}_bias", "down_proj_bias"}
    stacks: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    if stacks.keys() != expected:
        return None
    if module.is_transposed:
        stacks[first] = stacks[first].transpose(-2, -1)
        stacks["down_proj"] = stacks["down_proj"].transpose(-2, -1)

    up = stacks[first]
    down = stacks["down_proj"]
    if up.dim() != 3 or down.dim() != 3 or len(up) != len(down):
        return None
    intermediate = down.shape[2]
    rows = intermediate
    if gated:  # gate and up share a stack
        rows = 2 * intermediate
    if up.shape[1] != rows:
        return None
    return stacks


def _unfused(module: Any, stacks: dict[str, Tensor]) -> Experts:
    """Experts whose weights are views of the stacks, of which the module is emptied."""
    interleaved = not getattr(module, "is_concatenated", True)
    trains = module.down_proj.requires_grad
    layers: dict[str, list[nn.Linear]] = {}  # by the projection's name, a layer per expert
    if "gate_up_proj" in stacks:
        gate, up = _gate_and_up_rows(stacks["gate_up_proj"].shape[1], interleaved)
        layers["gate_proj"] = _layers(stacks, "gate_up_proj", gate, trains)
        layers["up_proj"] = _layers(stacks, "gate_up_proj", up, trains)
    else:
        layers["up_proj"] = _layers(stacks, "up_proj", slice(None), trains)
    layers["down_proj"] = _layers(stacks, "down_proj", slice(None), trains)

    # The linear layers hold the same storage now; the module stays for its activation and norm.
    for name in list(module._parameters):
        delattr(module, name)
    experts = []
    for index in range(len(layers["down_proj"])):
        own = {name: per_expert[index] for name, per_expert in layers.items()}
        experts.append(Expert(own, module, interleaved))
    return Experts(experts)


def _gate_and_up_rows(rows: int, interleaved: bool) -> tuple[slice, slice]:
    """Which rows of a gate_up_proj are those of the gate, and which are those of up."""
    if interleaved:
        return slice(0, None, 2), slice(1, None, 2)
    return slice(0, rows // 2), slice(rows // 2, None)


def _layers(stacks: dict[str, Tensor], name: str, rows: slice, trains: bool) -> list[nn.Linear]:
    """A linear layer for each expert, from these rows of a stack; views, not copies."""
    bias = stacks.get(f"{name}_bias")
    layers = []
    for index, weight in enumerate(stacks[name]):  # (out, in)
        own_bias = None if bias is None else bias[index, rows]
        layers.append(_linear(weight[rows], own_bias, trains))
    return layers


def _linear(weight: Tensor, bias: Tensor | None, trains: bool) -> nn.Linear:
    """A linear layer around an existing weight (out, in) and bias (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=trains)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=trains)
    return layer


def _refuse_leftovers(model: nn.Module) -> None:
    """ModelError where weights of a block are in no linear layer.

    Such are a stack of matrices, and a matrix larger than every linear layer.
    """
    prefix, blocks = decoder_blocks(model)
    largest = max(layer.weight.numel() for layer in linears(blocks).values())
    for name, module in blocks.named_modules():
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding, _ConvNd)):
            continue
        for key, value in module.named_parameters(recurse=False):
            # More than two axes that are not of size 1: three make a stack (experts, out, in).
            is_stack = sum(size > 1 for size in value.shape) > 2
            if is_stack or value.numel() > largest:
                raise ModelError(
                    f"{prefix}.{name} ({type(module).__name__}) keeps {key} of shape "
                    f"{tuple(value.shape)} outside linear layers, and such experts or mixers "
                    "cannot be quantized yet; qbench quantizes linear layers and the experts that "
                    "transformers 5 declares with use_experts_implementation; choose another model"
                )
