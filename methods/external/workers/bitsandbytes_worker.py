"""bitsandbytes through transformers, which quantizes a model while it loads it."""

from __future__ import annotations

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import dequantize_4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from worker_files import Work, run


def quantize(work: Work) -> None:
    """Load the model in 4 bits, and write what it holds. The time is that of loading, too."""
    kind = work.settings["method"].rpartition(":")[2]
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=work.parameters["double_quantization"],
        bnb_4bit_compute_dtype=torch.float32,
    )
    with work.quantizing():
        model = AutoModelForCausalLM.from_pretrained(
            work.model,
            quantization_config=config,
            dtype=torch.float32,
            device_map={"": work.device},
        )
    work.used = config.to_diff_dict()
    model.save_pretrained(work.checkpoint)
    weights = {}
    for name, layer in model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            weights[name] = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    work.write_dequantized(weights)


if __name__ == "__main__":
    run(quantize)
