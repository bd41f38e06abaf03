"""Folders of qbench itself: the parts that `quantization_config` states, and all other tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from qbench.checkpoint.config import QuantizationConfig, compare, read_layout
from qbench.files.shards import Shards
from qbench.inspection.pieces import Piece, Reading, dense_layers, dense_piece

# The parts of our formats (qbench/formats), and their items.
PARTS = {
    "codes": "codes",
    "planes": "codes",
    "scale": "scales",
    "alpha": "scales",
    "zero_point": "zero_points",
    "shift": "shifts",
    "scale_codes": "scales",
    "scale_span": "scales",
    "alpha_codes": "scales",
    "alpha_span": "scales",  # of the shifts too
    "zero_point_codes": "zero_points",
    "zero_point_span": "zero_points",
    "shift_codes": "shifts",
    "map": "codebooks",
    "offset": "codebooks",
    "su": "sign_vectors",
    "sv": "sign_vectors",
    "signs": "sign_vectors",
    "weight": "dense_weights",  # of the format `dense`; in all others it is the empty sentinel
}
MIXED = ("rules", "head_bits", "budget")  # settings of a scheme by which layers differ


def read_own(config: Mapping[str, Any], shards: Shards) -> Reading:
    """config: the content of config.json. StoreError where the tensors are not those it states."""
    layout = read_layout(config, shards.folder / "config.json")
    pieces: list[Piece] = []
    dense: list[str] = []  # layers that the method left dense
    for layer, group in compare(layout, shards).items():
        outputs, inputs = group.weight().shape
        parameters = outputs * inputs
        for part in group.parts:
            name = f"{layer}.{part}"
            item = PARTS.get(part, "other")
            pieces.append(Piece(name, item, shards.entries[name].nbytes, parameters, layer))
            parameters = 0  # the first part alone stands for the weights
        if group.format == "dense":
            dense.append(layer)
    quantized = {piece.tensor for piece in pieces}
    others = []
    for name, tensor in shards.entries.items():
        if name not in quantized:
            others.append(dense_piece(name, tensor.shape, tensor.nbytes))
    facts = layout.facts()
    method = facts.get("method")
    scheme = facts.get("scheme")
    bits = scheme.get("bits") if isinstance(scheme, Mapping) else None
    notes = []
    if isinstance(scheme, Mapping) and any(key in scheme for key in MIXED):
        bits = None  # there is not one number
        notes.append(f"codes by layer: {_widths(layout)}")
    return Reading(
        source="qbench",
        pieces=pieces + others,
        dense=dense + dense_layers(others),
        format_version=str(layout.version),
        method=None if method is None else str(method),
        parameters=facts,
        stated_bits=float(bits) if isinstance(bits, int) else None,
        notes=notes,
    )


def _widths(layout: QuantizationConfig) -> str:
    """`3 bits in 180 layers, 8 bits in 30, full precision in 7`, from the tensors' shapes."""
    counts: Counter[str] = Counter()
    for group in layout.groups:
        bits = getattr(group.weight(), "bits", None)
        counts["full precision" if bits is None else f"{bits} bits"] += len(group.modules)
    return ", ".join(f"{width} in {count} layers" for width, count in sorted(counts.items()))
