"""What the tensors of a model file hold: the pieces and items that `qbench inspect` tells apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

# In the order of the table. dense_weights are those of linear layers in full precision.
ITEMS = (
    "codes",
    "scales",
    "zero_points",
    "shifts",
    "codebooks",
    "sign_vectors",
    "permutations",
    "dense_weights",
    "embeddings",
    "head",
    "norms",
    "biases",
    "other",
)
_NORM = re.compile(r"norm|(^|_)ln(_|\d*$)", re.IGNORECASE)
_EMBEDDINGS = re.compile(
    r"embed|^(wte|wpe|shared|token_embd|position_embd|token_types)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Piece:
    """The bytes that one tensor spends on one item.

    A tensor is one piece, but a block-quantized tensor of a GGUF file, whose blocks hold codes and
    scales side by side, is a piece for each of them.

    tensor: its name in the file. item: one of ITEMS. parameters: how many parameters of the model
    it stands for: the elements of a dense tensor, the weights behind codes, and 0 for scales and
    the like. layer: the quantized linear layer whose weight it stores; None for everything else,
    also for that layer's bias.
    """

    tensor: str
    item: str
    nbytes: int
    parameters: int = 0
    layer: str | None = None


@dataclass(frozen=True)
class Reading:
    """What the reader of one kind of file gives.

    source: the kind: `qbench`, `unquantized`, `gguf`, or the quant_method of another program.
    pieces: of every tensor. dense: names of the linear layers in full precision. parameters: of the
    method, as the file states them. stated_bits: of a code, where the file states one number for
    all layers. notes: sentences for the reader of the table.
    """

    source: str
    pieces: Sequence[Piece]
    dense: Sequence[str]
    format_version: str | None = None
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    stated_bits: float | None = None
    notes: Sequence[str] = ()


def dense_piece(name: str, shape: Sequence[int], nbytes: int) -> Piece:
    """A tensor that is stored as it is. shape: in any order of the axes."""
    return Piece(name, item_of(name, len(shape)), nbytes, prod(shape))


def part_piece(name: str, layer: str, item: str, nbytes: int, parameters: int = 0) -> Piece:
    """A part of the quantized weight of `layer`.

    A quantized embedding is no linear layer: its parts stay among the embeddings.
    """
    if item_of(f"{layer}.weight", 2) == "embeddings":
        return Piece(name, "embeddings", nbytes, parameters)
    return Piece(name, item, nbytes, parameters, layer)


def dense_layers(pieces: Sequence[Piece]) -> list[str]:
    """Linear layers that are stored as they are, the head among them, in the order of the model."""
    layers = set()
    for piece in pieces:
        if piece.item in ("dense_weights", "head"):
            layers.add(piece.tensor.removesuffix(".weight"))
    return sorted(layers, key=_with_numbers)


def item_of(name: str, axes: int) -> str:
    """The item of a tensor that is stored as it is, by its name and its number of axes.

    Norms, the head and embeddings are known by the last word of their module's name (`output` is
    GGUF's head). What else has two axes and is a `.weight`, or is a stack of matrices, is taken for
    a linear layer.
    """
    module, _, leaf = name.rpartition(".")
    last_word = module.rpartition(".")[2]
    if _NORM.search(last_word):
        return "norms"
    if leaf.endswith("bias"):
        return "biases"
    if last_word in ("lm_head", "embed_out") or module == "output":
        return "head"
    if _EMBEDDINGS.search(last_word):
        return "embeddings"
    # experts are stacks (experts, out, in), with and without a `.weight` at the end
    matrix_axes = (2, 3) if leaf == "weight" else (3,)
    if axes in matrix_axes and "conv" not in last_word:
        return "dense_weights"
    return "other"


def _with_numbers(name: str) -> list[tuple[int, str]]:
    """A sort key that puts `layers.2` before `layers.10`."""
    key = []
    for word in name.split("."):
        # Pairs, as a number and a word cannot be compared; words come before numbers.
        if word.isdecimal():
            key.append((int(word), ""))
        else:
            key.append((-1, word))
    return key
