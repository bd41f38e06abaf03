"""auto-gptq: GPTQ, and the folder that it writes."""

from __future__ import annotations

import torch
from auto_gptq import BaseQuantizeConfig
from auto_gptq.modeling import _base
from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP
from transformers import AutoModelForCausalLM
from worker_files import Work, copy_tokenizer, linear_layers, older_folder, run


def quantize(work: Work) -> None:
    """Quantize by the package's defaults at the bits, groups and grid that are asked."""
    settings = work.settings
    config = BaseQuantizeConfig(
        bits=settings["bits"],
        group_size=settings["group_size"] or -1,
        sym=settings["symmetric"],
        model_file_base_name="model",
        **work.parameters,
    )
    if work.device == "cpu":  # it takes a GPU for granted, and needs none
        _base.CUDA_0 = torch.device("cpu")
        torch.cuda.synchronize = lambda device=None: None
    model = AutoModelForCausalLM.from_pretrained(older_folder(work), torch_dtype=torch.float32)
    names = [name for name, _ in linear_layers(model)]
    # What its own from_pretrained returns, which refuses a machine without a GPU.
    wrapped = GPTQ_CAUSAL_LM_MODEL_MAP[model.config.model_type](model.eval(), False, config)
    examples = []
    for row in work.rows():
        examples.append({"input_ids": row, "attention_mask": [1] * len(row)})
    with work.quantizing():
        wrapped.quantize(examples, batch_size=1)
    work.used = config.to_dict()
    wrapped.save_quantized(str(work.checkpoint))
    copy_tokenizer(work)
    weights = {}
    for name in names:
        layer = model.get_submodule(name)
        bias, layer.bias = layer.bias, None
        weights[name] = layer(torch.eye(layer.infeatures)).T
        layer.bias = bias
    work.write_dequantized(weights)


if __name__ == "__main__":
    run(quantize)
