"""Where the weights of a transformers decoder are: its blocks, and the linear layers in them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qbench.errors import ModelError


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The full name of the list of the decoder's blocks, and the list.

    It is the outermost ModuleList with the most linear weights. ModelError where there is none.
    """
    largest = 0
    decoder: tuple[str, nn.ModuleList] | None = None
    for name, blocks in _outermost_lists(model).items():
        size = sum(layer.weight.numel() for layer in linears(blocks).values())
        if size > largest:
            largest = size
            decoder = name, blocks
    if decoder is None:
        raise ModelError(
            f"{type(model).__name__} has no list of blocks with linear layers; "
            "qbench quantizes decoders"
        )
    return decoder


def linears(block: nn.Module) -> dict[str, Any]:
    """Linear layers by name within the block, in the order of their registration.

    GPT-2's Conv1D is one of them. Routers of experts are not: they stay in full precision, as a
    wrong choice of expert costs more than their bits.
    """
    routers = _routers(block)
    layers = {}
    for name, module in block.named_modules():
        if is_linear(module) and module not in routers:
            layers[name] = module
    return layers


def is_linear(module: nn.Module) -> bool:
    """Whether a module is nn.Linear, or GPT-2's Conv1D."""
    return isinstance(module, (nn.Linear, Conv1D))


def quantizable(model: nn.Module) -> dict[str, Any]:
    """All linear layers inside the decoder's blocks by full name.

    Embeddings and the head stay in full precision.
    """
    prefix, blocks = decoder_blocks(model)
    return {f"{prefix}.{name}": layer for name, layer in linears(blocks).items()}


def require_own_weights(model: nn.Module) -> None:
    """ModelError naming two linear layers inside the blocks that compute with one weight.

    Each would be quantized by itself, the second from what the first has become.
    """
    prefix, blocks = decoder_blocks(model)
    layers = set(linears(blocks).values())
    owner: dict[int, str] = {}  # by the place of the weight in memory
    # A layer that is in two places has two names here, and only one among `linears`.
    for name, module in blocks.named_modules(remove_duplicate=False):
        if module not in layers or not module.weight.numel():
            continue
        weight = module.weight
        # Experts are views of one storage, and begin at different places of it.
        place = id(weight) if weight.is_meta else weight.data_ptr()
        if place in owner:
            raise ModelError(
                f"{prefix}.{owner[place]} and {prefix}.{name} share one weight, and would be "
                "quantized twice; give each layer a weight of its own"
            )
        owner[place] = name


def read_weight(layer: Any) -> Tensor:
    """The weight as (out, in), a view without gradient; Conv1D stores (in, out)."""
    return as_kept(layer, layer.weight.detach())


def as_kept(layer: Any, weight: Tensor) -> Tensor:
    """A weight (out, in) as the layer keeps it: Conv1D has it transposed. Its own inverse."""
    return weight.T if isinstance(layer, Conv1D) else weight


def write_weight(layer: Any, weight: Tensor) -> None:
    """Replace the layer's weight by `weight` (out, in), in the layer's own dtype and device."""
    layer.weight.data.copy_(as_kept(layer, weight))


def _outermost_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Every ModuleList that is in no other one, by full name."""
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():  # a module comes before what is in it
        inside = any(name.startswith(f"{other}.") for other in outermost)
        if isinstance(module, nn.ModuleList) and not inside:
            outermost[name] = module
    return outermost


def _routers(block: nn.Module) -> set[nn.Linear]:
    """The linear layers that choose experts, or weigh them.

    Such a layer is the only one in a child beside a list of experts, and has one output for every
    expert, or a single one.
    """
    routers: set[nn.Linear] = set()
    for home in block.modules():
        children = list(home.children())
        counts = {len(child) for child in children if isinstance(child, nn.ModuleList)}
        if not counts:
            continue
        for child in children:
            if isinstance(child, nn.ModuleList):
                continue
            layers = [module for module in child.modules() if isinstance(module, nn.Linear)]
            if len(layers) == 1 and layers[0].out_features in {1, *counts}:
                routers.add(layers[0])
    return routers
