"""HQQ: its own API for models of transformers, and its own safetensors folder.

HqqConfig of transformers 5 raises NotImplementedError, so the package's model class is used.
"""

from __future__ import annotations

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer
from hqq.models.hf.base import AutoHQQHFModel
from transformers import AutoModelForCausalLM
from worker_files import Work, run

COMPUTE = torch.float16  # the package's default, in which it also stores scales and zero points


def quantize(work: Work) -> None:
    """Quantize all linear layers but the head, and write the codes beside the checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    settings = work.settings
    config = BaseQuantizeConfig(nbits=settings["bits"], group_size=settings["group_size"], axis=1)
    with work.quantizing():
        AutoHQQHFModel.quantize_model(
            model, quant_config=config, compute_dtype=COMPUTE, device=work.device
        )
    work.used = {"quant_config": config["weight_quant_params"], "compute_dtype": str(COMPUTE)}
    if model.config.tie_word_embeddings:  # its writer refuses tensors that share memory
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    AutoHQQHFModel.save_to_safetensors(model, str(work.checkpoint), verbose=False)
    codes: dict[str, torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, HQQLinear):
            weights[name] = layer.dequantize()
            codes |= parts(name, layer)
    work.write_dequantized(weights)
    work.write_codes(codes)


def parts(name: str, layer: HQQLinear) -> dict[str, torch.Tensor]:
    """Codes, scales and zero points of a layer; groups are runs of inputs, as axis is 1."""
    meta = layer.meta
    out, columns = meta["shape"]
    rows = out * columns // meta["group_size"]
    unpacked = Quantizer.unpack[meta["packing"]](layer.W_q, dtype=torch.uint8)
    return {
        f"{name}.codes": unpacked[:rows].reshape(out, columns),
        f"{name}.scale": meta["scale"].reshape(out, -1),
        f"{name}.zero_point": meta["zero"].reshape(out, -1),
    }


if __name__ == "__main__":
    run(quantize)
