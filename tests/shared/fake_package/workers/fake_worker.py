"""Quantizes to the nearest level, and does then what it is told by `how`."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

from worker_files import Work, linear_layers, run

if TYPE_CHECKING:  # what ends before it quantizes takes no seconds to import it
    import torch


def quantize(work: Work) -> None:
    """`codes`, `dequantized`: write these. Others: faults of packages."""
    how = work.parameters["how"]
    if how == "raises":
        raise RuntimeError("no kernel for this machine")
    if how == "exits":
        os._exit(3)
    if how == "killed":
        os.kill(os.getpid(), 9)
    if how == "hangs":
        time.sleep(1000)
    if how == "silent":
        os._exit(0)
    import torch
    from transformers import AutoModelForCausalLM

    assert work.tokens is not None and work.tokens.dtype == torch.int64
    if how in ("codes", "dequantized"):  # of the others some are run in the tests' own process
        assert not [name for name in sys.modules if name.partition(".")[0] == "qbench"]
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    codes, weights = {}, {}
    with work.quantizing():
        for name, layer in linear_layers(model):
            codes |= parts(name, layer.weight.detach(), work.settings)
            levels = codes[f"{name}.codes"].float() - codes[f"{name}.zero_point"].repeat_interleave(
                work.settings["group_size"], 1
            )
            scale = codes[f"{name}.scale"].repeat_interleave(work.settings["group_size"], 1)
            weights[name] = levels * scale
    if how == "nothing":
        return
    work.checkpoint.mkdir()
    (work.checkpoint / "config.json").write_text(json.dumps(model.config.to_dict()))
    model.save_pretrained(work.checkpoint)
    first = next(iter(weights))
    if how == "other layout":  # codes of another order than they were
        codes[f"{first}.codes"] = codes[f"{first}.codes"].flip(1)
    if how == "other shape":
        weights[first] = weights[first][:, :-16]
    if how == "transposed":
        weights = {name: weight.T for name, weight in weights.items()}
    if how == "not finite":
        weights[first] = weights[first] * float("nan")
    if how == "more bits":
        codes[f"{first}.codes"] = codes[f"{first}.codes"] + 200
    if how == "other names":
        weights = {f"base.{name}": weight for name, weight in weights.items()}
    work.write_dequantized(weights)
    if how in ("codes", "other layout", "more bits"):
        work.write_codes(codes)
    if how == "damaged":
        (work.output / "dequantized.safetensors").write_bytes(b"damaged")
    work.used = {"how": how}


def parts(name: str, weight: torch.Tensor, settings: dict) -> dict[str, torch.Tensor]:
    """Codes, scales and zero points by minimum and maximum."""
    import torch

    groups = weight.unflatten(1, (-1, settings["group_size"]))
    low, high = groups.amin(2), groups.amax(2)
    scale = (high - low) / (2 ** settings["bits"] - 1)
    zero = (-low / scale).round()
    levels = (groups / scale[..., None] + zero[..., None]).round()
    codes = levels.clamp(0, 2 ** settings["bits"] - 1).to(torch.uint8)
    return {
        f"{name}.codes": codes.flatten(1),
        f"{name}.scale": scale,
        f"{name}.zero_point": zero,
    }


if __name__ == "__main__":
    run(quantize)
