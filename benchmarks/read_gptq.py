"""What gptqmodel reads from a GPTQ folder: `python benchmarks/read_gptq.py GPTQ DENSE`.

GPTQ and DENSE are folders of the same model. Both are read on the CPU in float16, the dense one by
transformers, the packed one by gptqmodel, or with --transformers by transformers on top of
gptqmodel and optimum. Printed are the largest differences of the weights that gptqmodel
dequantizes, and of the logits of 64 fixed tokens, beside what float16 alone costs the dense model's
logits. Needs an environment with gptqmodel, and nothing of qbench. On few cores:
`GPTQMODEL_CPU_WORKERS=2`; `TORCH_COMPILE_DISABLE=1` is faster for small models.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTQConfig


def packed_model(folder: str, through_transformers: bool) -> Any:
    """The model with packed layers, on the CPU in float16."""
    if through_transformers:
        # of these settings only the backend counts; the folder states the rest
        settings = GPTQConfig(bits=4, backend="gptq_torch")
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float16, device_map="cpu", quantization_config=settings
        )
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(
        folder, device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16
    ).model


def weight_difference(packed: Any, dense: Any) -> tuple[int, float]:
    """(packed layers, the largest difference of a weight)."""
    differences = []
    for name, layer in packed.named_modules():
        if hasattr(layer, "qweight"):
            read = layer.dequantize_weight().T.float()  # (out, in)
            expected = dense.get_submodule(name).weight.float()
            differences.append((read - expected).abs().max().item())
    return len(differences), max(differences)


def logits(model: Any) -> Tensor:
    """(1, 64, vocabulary) float32, of 64 fixed tokens."""
    tokens = torch.arange(64)[None] * 7 % model.config.vocab_size
    with torch.no_grad():
        values: Tensor = model.eval()(tokens).logits
    return values.float()


def main() -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gptq")
    parser.add_argument("dense")
    parser.add_argument("--transformers", action="store_true")
    arguments = parser.parse_args()
    packed = packed_model(arguments.gptq, arguments.transformers)
    dense = AutoModelForCausalLM.from_pretrained(arguments.dense, dtype=torch.float16)
    count, difference = weight_difference(packed, dense)
    expected = logits(dense)
    difference_of_packed = (logits(packed) - expected).abs().max()
    difference_of_float16 = (logits(dense.float()) - expected).abs().max()
    print(f"weights  {count} packed layers, largest difference {difference:.3g}")
    print(f"logits   largest difference {difference_of_packed:.3g} of {expected.abs().max():.3g}")
    print(f"float16  largest difference {difference_of_float16:.3g}, dense against dense")


if __name__ == "__main__":
    main()
