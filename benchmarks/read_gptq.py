"""What gptqmodel reads from a GPTQ folder: `python benchmarks/read_gptq.py GPTQ_FOLDER DENSE_FOLDER [--transformers]`.

Both folders are read on the CPU in float16, the dense one by transformers, the packed one by
gptqmodel, or by transformers on top of gptqmodel and optimum. Printed are the largest differences
of the weights that gptqmodel dequantizes, and of the logits of 64 fixed tokens, beside what float16
alone costs the dense model's logits. Needs an environment with gptqmodel, and nothing of qbench. On
few cores: `GPTQMODEL_CPU_WORKERS=2`; `TORCH_COMPILE_DISABLE=1` is faster for small models.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTQConfig


def packed_model(folder: str, through_transformers: bool) -> Any:
    """The model with packed layers."""
    if through_transformers:
        plain = GPTQConfig(
            bits=4, backend="gptq_torch"
        )  # of these only the backend counts; the folder states the rest
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float16, device_map="cpu", quantization_config=plain
        )
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(
        folder, device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16
    ).model


def weight_difference(packed: Any, dense: Any) -> tuple[int, float]:
    """(packed layers, the largest difference of a weight)."""
    layers = [(name, layer) for name, layer in packed.named_modules() if hasattr(layer, "qweight")]
    read = [
        (layer.dequantize_weight().T, dense.get_submodule(name).weight) for name, layer in layers
    ]
    return len(layers), max(
        (left.float() - right.float()).abs().max().item() for left, right in read
    )


def logits(model: Any) -> Tensor:
    """(1, 64, vocabulary) float32."""
    tokens = torch.arange(64)[None] * 7 % model.config.vocab_size
    with torch.no_grad():
        found: Tensor = model.eval()(tokens).logits
    return found.float()


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
    print(f"weights  {count} packed layers, largest difference {difference:.3g}")
    print(
        f"logits   largest difference {(logits(packed) - expected).abs().max():.3g} of {expected.abs().max():.3g}"
    )
    print(
        f"float16  largest difference {(logits(dense.float()) - expected).abs().max():.3g}, dense against dense"
    )


if __name__ == "__main__":
    main()
