"""Linear layers inside the blocks that another program left as they are: they count, as ours do.

In our own folders such a layer is a weight of the format `dense`. Here it is known by name and
shape, by the rules of `qbench.models.blocks`: the blocks are the outermost list with the most
linear weights, and routers do not count.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from qbench.inspection.pieces import Piece, Reading, item_of

_OUTERMOST = re.compile(r"(.+?)\.\d+\.")  # a list, before the first number of a name
_INNER = re.compile(r"(.+?\.\d+\..+?)\.(\d+)\.")  # a list inside a block, and a place in it


def with_left_layers(reading: Reading, routers: Collection[str]) -> Reading:
    """The reading, in which linear layers of the blocks that were left are layers, too.

    It stays as it is where no layer is quantized. routers: names of layers that do not count.
    """
    sizes: Counter[str] = Counter()
    for piece in reading.pieces:
        if piece.layer is not None or piece.item == "dense_weights":
            sizes[_list_of(piece.tensor)] += piece.parameters
    del sizes[""]
    if not sizes or all(piece.layer is None for piece in reading.pieces):
        return reading
    [(blocks, _)] = sizes.most_common(1)
    pieces: list[Piece] = []
    for piece in reading.pieces:
        layer = piece.tensor.removesuffix(".weight")
        inside = _list_of(piece.tensor) == blocks and layer not in routers
        if piece.item == "dense_weights" and inside:
            piece = replace(piece, layer=layer)
        pieces.append(piece)
    return replace(reading, pieces=pieces)


def routers(reading: Reading, shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Names of the layers that choose experts, or weigh them. shapes: of every tensor.

    Such a layer is the only one in a child beside the experts, which are a list or a stack, and has
    one output for every expert, or a single one.
    """
    experts: dict[str, int] = {}  # how many there are in each list or stack
    for name, shape in shapes.items():
        inner = _INNER.match(name)
        if inner:
            experts[inner[1]] = max(experts.get(inner[1], 0), int(inner[2]) + 1)
        elif len(shape) == 3 and item_of(name, 3) == "dense_weights":
            experts[name.rpartition(".")[0]] = shape[0]
    counts: dict[str, set[int]] = defaultdict(set)  # of experts, by the module that has them
    for name, count in experts.items():
        counts[name.rpartition(".")[0]].add(count)
    children: dict[str, set[str]] = defaultdict(set)  # the layers in each child beside experts
    for layer in {piece.layer for piece in reading.pieces} | set(reading.dense):
        for home, child in _homes(layer or ""):
            if home in counts and child not in experts:
                children[child].add(layer or "")
    found = set()
    for child, layers in children.items():
        outputs = shapes.get(f"{next(iter(layers))}.weight", (0,))[0]
        if len(layers) == 1 and outputs in {1, *counts[child.rpartition(".")[0]]}:
            found |= layers
    return found


def _list_of(name: str) -> str:
    """Of `model.layers.0.mlp.up_proj.weight` the list `model.layers`; empty without one."""
    found = _OUTERMOST.match(name)
    return found[1] if found else ""


def _homes(layer: str) -> Iterator[tuple[str, str]]:
    """A layer's modules, each with its child in which the layer is; both by full name."""
    child = layer
    while "." in child:
        home = child.rpartition(".")[0]
        yield home, child
        child = home
