"""gptqmodel's GPTQ on single layers: started by `peer_layers.py` in gptqmodel's environment.

FOLDER/layers.safetensors holds LAYER.weight (out, in), LAYER.hessian (in, in), LAYER.inputs
(tokens, in); FOLDER/jobs.json a list of what to round and how. It leaves in FOLDER/gptqmodel.*, by
the job's number, codes and zero (out, in) uint8 and dequantized (out, in), and how far its own
Hessian of the inputs is from ours, as a share of the largest entry.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

import torch
from gptqmodel.quantization.config import FORMAT, GPTQConfig
from gptqmodel.quantization.gptq import GPTQ
from safetensors.torch import load_file, save_file


def rounded(job: dict[str, Any], layers: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What its GPTQ makes of one layer under the settings of a job."""
    weight, hessian, inputs = (
        layers[f"{job['layer']}.{part}"] for part in ("weight", "hessian", "inputs")
    )
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data = weight.clone()
    config = GPTQConfig(
        bits=job["bits"],
        group_size=job["group_size"],
        sym=False,
        format=FORMAT.GPTQ_V2,
        damp_percent=job["damp"],
        **job["settings"],
    )
    gptq = GPTQ(module, config)
    gptq.quantizer.configure(perchannel=True)
    gptq.add_batch(inputs, torch.empty(0))
    difference = (gptq.finalize_hessian() - hessian).abs().max() / hessian.abs().max()
    gptq.H = hessian.clone()  # the very same numbers
    dequantized, scale, zero, groups, *_ = gptq.quantize(blocksize=job["block_size"])
    columns = groups.long()  # the group of each column
    zero = zero[:, columns]
    codes = (dequantized / scale[:, columns] + zero).round()
    return {
        "codes": codes.to(torch.uint8),
        "zero": zero.to(torch.uint8),
        "dequantized": dequantized.contiguous(),
        "difference": difference.item(),
    }


def main() -> None:
    """All jobs."""
    folder = Path(sys.argv[1])
    layers = load_file(folder / "layers.safetensors")
    tensors = {}
    differences = {}
    for number, job in enumerate(json.loads((folder / "jobs.json").read_text())):
        result = rounded(job, layers)
        differences[job["layer"]] = result.pop("difference")
        tensors |= {f"{number}.{part}": tensor for part, tensor in result.items()}
    save_file(tensors, folder / "gptqmodel.safetensors")
    (folder / "gptqmodel.json").write_text(json.dumps(differences))


if __name__ == "__main__":
    main()
