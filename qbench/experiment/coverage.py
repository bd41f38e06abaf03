"""Which of a model's linear layers are quantized, at how many bits, and whether it is smaller.

A recipe whose patterns match nothing leaves a model that loads, scores well and is as large as
before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qbench.contracts import WeightFormat
from qbench.formats import bits_per_weight
from qbench.models.blocks import linears, quantizable


def coverage(
    model: nn.Module, weights: Mapping[str, WeightFormat], folder: Path, stored: torch.dtype
) -> dict[str, Any]:
    """JSON-able facts about a quantized model.

    model: with its weights dequantized. weights: by the full name of their layer. folder: with the
    model's files. stored: the dtype in which the unquantized model is published.

    linear: linear layers of the whole model; blocks: of them, inside the decoder's blocks;
    quantized: of these; bits: bits of the codes -> layers; left: names of the layers inside blocks
    that are not quantized. bytes: of the tensors' files; original_bytes: of the unquantized model's
    tensors.
    """
    inside = quantizable(model)
    bits: Counter[str] = Counter()
    for weight in weights.values():
        stated = getattr(weight, "bits", None)
        measured = f"{bits_per_weight([weight])['total']:.2f}"
        bits[measured if stated is None else str(stated)] += 1
    return {
        "linear": len(linears(model)),
        "blocks": len(inside),
        "quantized": len(inside.keys() & weights.keys()),
        "bits": dict(sorted(bits.items())),
        "left": sorted(inside.keys() - weights.keys()),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "original_bytes": stored.itemsize * sum(part.numel() for part in model.parameters()),
    }
