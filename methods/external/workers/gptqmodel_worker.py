"""gptqmodel: GPTQ, GPTAQ and AWQ, and the folder that it writes."""

from __future__ import annotations

import os

# It leaves no thread for the work itself where it sees two cores, and compiles for minutes.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization.config import FORMAT, AWQConfig, GPTAQConfig, GPTQConfig
from transformers import AutoTokenizer
from worker_files import Work, run


def quantize(work: Work) -> None:
    """Quantize by the package's defaults at the bits, groups and grid that are asked."""
    settings = work.settings
    algorithm = settings["method"].rpartition(":")[2]
    backend, dtype = BACKEND.AUTO, torch.float32
    common = {
        "bits": settings["bits"],
        "group_size": settings["group_size"] or -1,
        "sym": settings["symmetric"],
        "offload_to_disk": False,
    }
    if algorithm == "awq":
        config = AWQConfig(**common, format=FORMAT.GEMM)
        if work.device == "cpu":  # what it chooses for itself wants CUDA
            backend, dtype = BACKEND.AWQ_TORCH, torch.bfloat16  # which knows no float32
    else:
        # The older format stores zero points less one, and is refused for grids with zero points.
        layout = FORMAT.GPTQ if settings["symmetric"] else FORMAT.GPTQ_V2
        gptaq = GPTAQConfig() if algorithm == "gptaq" else None
        config = GPTQConfig(**common, format=layout, gptaq=gptaq, **work.parameters)
    model = GPTQModel.load(work.model, config, device=work.device, dtype=dtype)
    samples = []
    for row in work.rows():
        samples.append({"input_ids": row, "attention_mask": [1] * len(row)})
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    with work.quantizing():
        model.quantize(samples, batch_size=1, tokenizer=tokenizer, backend=backend)
    work.used = config.to_dict()
    model.save(str(work.checkpoint))
    weights = {}
    for name, layer in model.model.named_modules():
        if hasattr(layer, "qweight") and hasattr(layer, "dequantize_weight"):
            weights[name] = layer.dequantize_weight().T  # it is (in, out)
    work.write_dequantized(weights)


if __name__ == "__main__":
    run(quantize)
