"""The parts of a quantized model that can be exchanged for those of the unquantized one.

A part is a linear layer, where all else is the same in both models. A method may also have changed
other parameters, such as a norm into which it folded scales. Then a layer of one model does not fit
into the other, a whole block does, and parts are blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qbench.errors import ConfigError
from qbench.models.blocks import decoder_blocks, linears

WHOLE = "whole block"
# Relative; what another program stores of a norm in half precision differs by less.
SAME = 1e-2
Pair = tuple[nn.Parameter, nn.Parameter]  # of the unquantized model, and of the quantized one


@dataclass(frozen=True)
class Unit:
    """One part. name: in full. block: its place. kind: its name in the block. pairs: parameters."""

    name: str
    block: int
    kind: str
    pairs: tuple[Pair, ...]

    @property
    def weights(self) -> int:
        """How many numbers it has."""
        return sum(own.numel() for own, _ in self.pairs)


def units(original: nn.Module, quantized: nn.Module) -> list[Unit]:
    """The parts that differ, block by block. ConfigError where the models are not of one shape.

    Or where they do not differ.
    """
    prefix, blocks = decoder_blocks(original)
    other_prefix, others = decoder_blocks(quantized)
    if (prefix, len(blocks)) != (other_prefix, len(others)):
        raise ConfigError(
            f"the quantized model has {len(others)} blocks in {other_prefix}, and the unquantized "
            f"one {len(blocks)} in {prefix}; give the model that it was made of"
        )
    parts: list[Unit] = []
    folded = False
    for index, (block, other) in enumerate(zip(blocks, others, strict=True)):
        layers, rest = _of_block(f"{prefix}.{index}", index, block, other)
        parts += layers
        folded = folded or any(_differ(pair) for pair in rest)
    if folded:
        parts = list(_whole_blocks(prefix, blocks, others))
    parts = [unit for unit in parts if any(_differ(pair, 0.0) for pair in unit.pairs)]
    if not parts:
        raise ConfigError("no layer of the two models differs; give a quantized model")
    return parts


@contextmanager
def exchanged(parts: Iterable[Unit]) -> Iterator[None]:
    """While these parts of the two models have changed places."""
    pairs = [pair for unit in parts for pair in unit.pairs]
    _exchange(pairs)
    try:
        yield
    finally:
        _exchange(pairs)


def _exchange(pairs: Iterable[Pair]) -> None:
    for own, other in pairs:
        own.data, other.data = other.data, own.data


def _of_block(
    place: str, index: int, block: nn.Module, other: nn.Module
) -> tuple[list[Unit], list[Pair]]:
    """The linear layers of a block, and the pairs of all other parameters in it."""
    left = _pairs(place, block, other)
    layers = []
    for kind in linears(block):
        own = {name: pair for name, pair in left.items() if name.rpartition(".")[0] == kind}
        layers.append(Unit(f"{place}.{kind}", index, kind, tuple(own.values())))
        for name in own:
            del left[name]
    return layers, list(left.values())


def _whole_blocks(prefix: str, blocks: nn.ModuleList, others: nn.ModuleList) -> Iterator[Unit]:
    for index, (block, other) in enumerate(zip(blocks, others, strict=True)):
        place = f"{prefix}.{index}"
        yield Unit(place, index, WHOLE, tuple(_pairs(place, block, other).values()))


def _pairs(place: str, block: nn.Module, other: nn.Module) -> dict[str, Pair]:
    """The parameters of two blocks by name; ConfigError where they are not the same ones."""
    own, theirs = dict(block.named_parameters()), dict(other.named_parameters())
    shapes = {name: tensor.shape for name, tensor in own.items()}
    if shapes != {name: tensor.shape for name, tensor in theirs.items()}:
        raise ConfigError(
            f"{place} has other parameters in the quantized model than in the unquantized one; "
            "give the model that it was made of"
        )
    return {name: (own[name], theirs[name]) for name in own}


def _differ(pair: Pair, tolerance: float = SAME) -> bool:
    """Whether two parameters differ by more than a share of the largest number."""
    first, second = (_comparable(tensor) for tensor in pair)
    return bool((first - second).abs().max() > tolerance * first.abs().max())


def _comparable(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)
