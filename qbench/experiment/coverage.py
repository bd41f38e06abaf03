"""Which of a model's linear layers are quantized, at how many bits, and whether it is smaller.

A recipe whose patterns match nothing leaves a model that loads, scores well and is as large as
before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from qbench.contracts import Scheme, WeightFormat
from qbench.formats import Dense, bits_per_weight
from qbench.models.blocks import linears, quantizable


def coverage(
    model: Any,
    weights: Mapping[str, WeightFormat],
    folder: Path,
    stored: torch.dtype,
    scheme: Scheme | None = None,
    head: object = None,
) -> dict[str, Any]:
    """JSON-able facts about a quantized model.

    model: with its weights dequantized. weights: by the full name of their layer. folder: with the
    model's files. stored: the dtype in which the unquantized model is published. scheme: what was
    asked, where it is not the same of all layers. head: what the manifest says of the head, whose
    weight may have been the embedding's before it was quantized.

    linear: linear layers of the whole model; blocks: of them, inside the decoder's blocks;
    quantized: of these; bits: bits of the codes -> layers; left: names of the layers inside blocks
    that are not quantized, as dense weights are not. asked: as `bits`, of the scheme; head: what
    the head has, where it is quantized; both only where there is something to say. bytes: of the
    tensors' files; original_bytes: of the unquantized model's tensors.
    """
    inside = quantizable(model)
    asked = {} if scheme is None or scheme.is_plain else scheme.of_layers(inside)
    codes = {name: weight for name, weight in weights.items() if not isinstance(weight, Dense)}
    left = sorted(inside.keys() - codes.keys())
    widths = {name: _width(weight) for name, weight in codes.items()}
    original = sum(part.numel() for part in model.parameters())
    if isinstance(head, Mapping) and head.get("untied") is True:
        original -= model.get_output_embeddings().weight.numel()
    facts = {
        "linear": len(linears(model)),
        "blocks": len(inside),
        "quantized": len(inside) - len(left),
        "bits": _counted(width for name, width in widths.items() if name in inside),
        "left": left,
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "original_bytes": stored.itemsize * original,
    }
    if asked:
        facts["asked"] = _counted(str(own.bits) for own in asked.values())
    heads = [width for name, width in widths.items() if name not in inside]
    if heads:
        facts["head"] = heads[0]
    return facts


def _width(weight: WeightFormat) -> str:
    """Bits of the codes; those that are measured where a format has no codes."""
    stated = getattr(weight, "bits", None)
    return f"{bits_per_weight([weight])['total']:.2f}" if stated is None else str(stated)


def _counted(widths: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(widths).items()))
