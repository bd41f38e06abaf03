"""optimum-quanto: its own class for models of transformers, and the folder that it writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from optimum.quanto import (
    HqqOptimizer,
    MaxOptimizer,
    QuantizedModelForCausalLM,
    WeightQBitsTensor,
    qtypes,
)
from optimum.quanto.library.extensions import get_extension
from transformers import AutoModelForCausalLM
from worker_files import Work, linear_layers, run


def quantize(work: Work) -> None:
    """Quantize the layers of the blocks, and write the codes beside the checkpoint."""
    get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=unpack)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    kind = f"qint{work.settings['bits']}"
    optimizer = {"max": MaxOptimizer, "hqq": HqqOptimizer}[work.parameters["optimizer"]]()
    layers = [name for name, _ in linear_layers(model)]
    with work.quantizing():
        quantized = QuantizedModelForCausalLM.quantize(
            model, weights=qtypes[kind], optimizer=optimizer, include=layers
        )
    codes: dict[str, torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    groups: dict[str, int] = {}
    for name in layers:
        weight = model.get_submodule(name).weight
        weights[name] = weight.dequantize()
        for part, tensor in parts(weight).items():
            codes[f"{name}.{part}"] = tensor
        size = str(weight._group_size or "channel")
        groups[size] = groups.get(size, 0) + 1
    work.used = {"weights": kind, "optimizer": type(optimizer).__name__, "groups": groups}
    work.write_dequantized(weights)
    work.write_codes(codes)
    quantized.save_pretrained(work.checkpoint)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes, as its function in C++ gives them, which it would compile for minutes first."""
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def parts(weight: Any) -> dict[str, torch.Tensor]:
    """Codes, scales and zero points of a layer, which is scale * code - shift."""
    if type(weight) is not WeightQBitsTensor:  # a layout for one kernel
        weight = weight.weight_qbits_tensor()
    out, columns = weight.shape
    scale = weight._scale.reshape(out, -1)
    shift = weight._shift.reshape(out, -1)
    # A group of equal weights has no scale, and codes that do not matter: it is minus its shift.
    flat = scale == 0
    in_group = flat.repeat_interleave(columns // scale.shape[1], 1)
    scale = torch.where(flat, 1.0, scale)
    return {
        "codes": weight._data.unpack().reshape(out, columns).masked_fill(in_group, 0),
        "scale": scale,
        "zero_point": shift / scale,
    }


if __name__ == "__main__":
    run(quantize)
