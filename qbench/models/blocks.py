"""Where the weights of a transformers decoder are: its blocks, and the linear layers inside them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qbench.errors import ModelError


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of the decoder's blocks: the outermost ModuleList with the most linear weights.

    ModelError where there is none.
    """
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
    }
    outer = {
        name: module
        for name, module in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
    }
    sizes = {
        name: sum(layer.weight.numel() for layer in linears(module).values())
        for name, module in outer.items()
    }
    if not any(sizes.values()):
        raise ModelError(
            f"{type(model).__name__} has no list of blocks with linear layers; qbench quantizes decoders"
        )
    name = max(sizes, key=lambda key: sizes[key])
    return name, outer[name]


def linears(block: nn.Module) -> dict[str, Any]:
    """Linear layers by name within the block, in the order of their registration; GPT-2's Conv1D is one of them.

    Routers of experts are not: they stay in full precision, as a wrong choice of expert costs more
    than their bits.
    """
    routers = _routers(block)
    return {
        name: module
        for name, module in block.named_modules()
        if is_linear(module) and module not in routers
    }


def is_linear(module: nn.Module) -> bool:
    """nn.Linear, or GPT-2's Conv1D."""
    return isinstance(module, (nn.Linear, Conv1D))


def _routers(block: nn.Module) -> set[nn.Linear]:
    """Linear layers, each on its own beside a list of experts, with one output for every expert or a single one."""
    found = set()
    for home in block.modules():
        lengths = {len(child) for child in home.children() if isinstance(child, nn.ModuleList)}
        for child in home.children() if lengths else ():
            layers = [module for module in child.modules() if isinstance(module, nn.Linear)]
            if (
                len(layers) == 1
                and not isinstance(child, nn.ModuleList)
                and layers[0].out_features in {1, *lengths}
            ):
                found.add(layers[0])
    return found


def quantizable(model: nn.Module) -> dict[str, Any]:
    """All linear layers inside the decoder's blocks by full name; embeddings and the head stay in full precision."""
    prefix, blocks = decoder_blocks(model)
    return {f"{prefix}.{name}": module for name, module in linears(blocks).items()}


def read_weight(layer: Any) -> Tensor:
    """The weight as (out, in); Conv1D stores (in, out)."""
    return as_kept(layer, layer.weight.detach())


def as_kept(layer: Any, weight: Tensor) -> Tensor:
    """(out, in) as the layer keeps it: Conv1D has it transposed. Its own inverse."""
    return weight.T if isinstance(layer, Conv1D) else weight


def write_weight(layer: Any, weight: Tensor) -> None:
    """Replace the weight by (out, in), in the layer's own dtype and device."""
    layer.weight.data.copy_(as_kept(layer, weight))
