"""llm-compressor: GPTQ and AWQ, in the layout of compressed-tensors."""

from __future__ import annotations

from typing import Any

import torch
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
)
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker_files import Work, run


def quantize(work: Work) -> None:
    """Quantize by the package's defaults at the bits, groups and grid that are asked."""
    samples, length = work.calibration.shape
    scheme = QuantizationScheme(targets=["Linear"], weights=weight_arguments(work.settings))
    groups: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    recipe = [GPTQModifier(**groups)]
    if work.settings["method"].endswith(":awq"):
        recipe = [AWQModifier(), QuantizationModifier(**groups)]
        if work.device == "cpu":  # pages cannot be pinned where there is no accelerator
            IntermediatesCache.pin_memory = lambda *arguments, **named: None
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    rows = work.rows()
    dataset = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * length] * samples})
    with work.quantizing():
        oneshot(
            model=model,
            tokenizer=tokenizer,
            dataset=dataset,
            recipe=recipe,
            max_seq_length=length,
            num_calibration_samples=samples,
        )
    work.used = {"scheme": scheme.model_dump(mode="json"), "samples": samples, "length": length}
    weights = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "weight_scale"):
            weights[name] = rounded(layer)
    work.write_dequantized(weights)
    model.save_pretrained(str(work.checkpoint), save_compressed=True)
    tokenizer.save_pretrained(str(work.checkpoint))


def weight_arguments(settings: dict[str, Any]) -> QuantizationArgs:
    """Integers of so many bits, in groups or per channel."""
    group = settings["group_size"]
    return QuantizationArgs(
        num_bits=settings["bits"],
        type="int",
        symmetric=settings["symmetric"],
        strategy="channel" if group is None else "group",
        group_size=group,
    )


def rounded(layer: Any) -> torch.Tensor:
    """The weight as the layer computes with it."""
    return fake_quantize(
        x=layer.weight.detach(),
        scale=layer.weight_scale,
        zero_point=getattr(layer, "weight_zero_point", None),
        args=layer.quantization_scheme.weights,
    )


if __name__ == "__main__":
    run(quantize)
