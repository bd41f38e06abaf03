"""What the tensors of a model file hold, piece by piece: the items that `qbench inspect` tells apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

Source = Literal["qbench", "gptq", "awq", "compressed-tensors", "gguf", "unquantized"]
ITEMS = (  # in the order of the table; dense_weights are those of linear layers in full precision
    *(
        "codes",
        "scales",
        "zero_points",
        "shifts",
        "codebooks",
        "sign_vectors",
        "permutations",
        "dense_weights",
    ),
    *("embeddings", "head", "norms", "biases", "other"),
)
_NORM = re.compile(r"norm|(^|_)ln(_|\d*$)", re.IGNORECASE)
_EMBEDDINGS = re.compile(
    r"embed|^(wte|wpe|shared|token_embd|position_embd|token_types)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Piece:
    """What one tensor spends on one item; a block-quantized tensor of a GGUF file is several pieces.

    parameters: of the model, that it stands for: elements of a dense tensor, weights behind codes,
    else 0. layer: the quantized linear layer whose weight it stores, None for everything else,
    biases among it.
    """

    tensor: str
    item: str
    nbytes: int
    parameters: int = 0
    layer: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a reader of one kind of file found.

    stated_bits: of a code, where the file states one number for all layers. dense: linear layers in
    full precision.
    """

    source: Source
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
    """A part of a quantized weight. A quantized embedding is no linear layer: it stays among the embeddings."""
    if item_of(f"{layer}.weight", 2) == "embeddings":
        return Piece(name, "embeddings", nbytes, parameters)
    return Piece(name, item, nbytes, parameters, layer)


def dense_layers(pieces: Sequence[Piece]) -> list[str]:
    """Linear layers that are stored as they are, the head among them, in order."""
    found = {
        piece.tensor.removesuffix(".weight")
        for piece in pieces
        if piece.item in ("dense_weights", "head")
    }
    return sorted(found, key=_by_number)


def item_of(name: str, axes: int) -> str:
    """The item of a tensor stored as it is, by its name and its number of axes.

    Norms, the head and embeddings are known by the last word of their module's name (`output` is
    GGUF's head); what else has two axes and is a `.weight`, or is a stack of matrices, is taken for
    a linear layer.
    """
    module, _, leaf = name.rpartition(".")
    last = module.rpartition(".")[2]
    if _NORM.search(last):
        return "norms"
    if leaf.endswith("bias"):
        return "biases"
    if last in ("lm_head", "embed_out") or module == "output":
        return "head"
    if _EMBEDDINGS.search(last):
        return "embeddings"
    if "conv" not in last and (
        (leaf == "weight" and axes in (2, 3)) or (leaf != "weight" and axes == 3)
    ):
        return "dense_weights"
    return "other"


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in name.split(".")]
