"""The arguments of a method's verb before and after a call.

Nothing of them may change, and nothing of them may be part of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from qbench.contracts import BlockInputs, BlockResult, LinearStats


def tensors_in(arguments: tuple[Any, ...]) -> dict[str, Tensor]:
    """All tensors of a verb's arguments by a name that a reader understands."""
    tensors: dict[str, Tensor] = {}
    for argument in arguments:
        if isinstance(argument, Tensor):
            tensors["the weight"] = argument
        elif isinstance(argument, LinearStats):
            tensors["the Hessian"] = argument.hessian
        elif isinstance(argument, nn.Module):
            for name, value in [*argument.named_parameters(), *argument.named_buffers()]:
                tensors[f"{name} of the block"] = value
        elif isinstance(argument, BlockInputs):
            leaves = tree_leaves((argument.quantized, argument.full, argument.arguments))
            inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            for i, leaf in enumerate(inputs):
                tensors[f"input {i} of the block"] = leaf
        elif isinstance(argument, list):
            for i, leaf in enumerate(argument):
                tensors[f"target {i} of the block"] = leaf
    return tensors


@dataclass(frozen=True)
class Arguments:
    """The tensors of a call, and the state of every module.

    copies: of their values, or of some. versions: how often torch has written to each.
    """

    tensors: Mapping[str, Tensor]
    copies: Mapping[str, Tensor]
    versions: Mapping[str, int]
    flags: Mapping[str, tuple[bool, bool]]
    modules: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(cls, arguments: tuple[Any, ...], copied: int | None = None) -> Arguments:
        """What they are now. copied: of how many arguments values are kept; None for all."""
        tensors = tensors_in(arguments)
        kept = tensors_in(arguments[:copied])
        copies = {name: tensor.detach().clone() for name, tensor in kept.items()}
        versions = {name: tensor._version for name, tensor in tensors.items()}
        flags = {name: _flags(tensor) for name, tensor in tensors.items()}
        modules: dict[str, tuple[Any, ...]] = {}
        for argument in arguments:
            if isinstance(argument, nn.Module):
                for name, part in argument.named_modules():
                    modules[name] = _state(part)
        return cls(tensors, copies, versions, flags, modules)

    def changes(self, arguments: tuple[Any, ...]) -> dict[str, str]:
        """`inputs`: a value was changed in place. `block`: a flag, a hook or a module changed."""
        later = Arguments.of(arguments, 0)
        sentences: dict[str, str] = {}
        if later.tensors.keys() != self.tensors.keys():
            odd = sorted(later.tensors.keys() ^ self.tensors.keys())
            sentences["inputs"] = f"{odd[0]} appeared or went away"
            return sentences
        for name, tensor in later.tensors.items():
            copy = self.copies.get(name)
            same = later.versions[name] == self.versions[name]
            if not (same if copy is None else _same(tensor, copy)):
                sentences.setdefault("inputs", f"{name} was changed in place")
            if later.flags[name] != self.flags[name] or tensor is not self.tensors[name]:
                sentences.setdefault(
                    "block", f"{name} has another requires_grad, a gradient, or was replaced"
                )
        for name, state in self.modules.items():
            if later.modules.get(name) != state:
                sentences.setdefault(
                    "block",
                    f"module {name or 'block'!r} has another training mode, hook or attribute",
                )
        return sentences

    def shared_with(self, result: Any) -> str | None:
        """A sentence where a tensor of the result lies in the memory of an argument."""
        # By storage and not by tensor: a view of an argument is its memory too.
        addresses: dict[int, str] = {}
        for name, tensor in self.tensors.items():
            addresses[tensor.untyped_storage().data_ptr()] = name
        for part, tensor in tensors_of(result).items():
            owner = addresses.get(tensor.untyped_storage().data_ptr())
            if owner is not None and tensor.numel():
                return f"{part} of the result lies in the memory of {owner}; give a copy"
        return None


def tensors_of(result: Any) -> dict[str, Tensor]:
    """All tensors of a result by part; empty for what is no result."""
    if isinstance(result, BlockResult):
        tensors = dict(result.parameters)
        for layer, weight in result.weights.items():
            for part, value in tensors_of(weight).items():
                tensors[f"{layer}.{part}"] = value
        return tensors
    if hasattr(result, "to_tensors"):
        return dict(result.to_tensors())
    return {}


def _flags(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.requires_grad, tensor.is_leaf and tensor.grad is not None


def _state(module: nn.Module) -> tuple[Any, ...]:
    """Identity, training mode, number of hooks, and names of attributes."""
    hooks = 0
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, dict):
            hooks += len(value)
    return id(module), module.training, hooks, sorted(vars(module))


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, dtype and bits, not-a-number included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # NaN is equal to nothing, itself included, and must count as unchanged.
    return torch.equal(torch.nan_to_num(a.detach()), torch.nan_to_num(b))
