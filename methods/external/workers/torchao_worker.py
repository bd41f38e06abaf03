"""torchao: its layers, and a folder with the names that it gives their parts in safetensors."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save_file
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup, quantize_
from transformers import AutoModelForCausalLM, PreTrainedModel, TorchAoConfig
from worker_files import Work, linear_layers, run

MIDDLE = 8  # of the sixteen levels of int4, to which its real zero points are counted


def quantize(work: Work) -> None:
    """Quantize by the package's defaults at the bits, groups and grid that are asked."""
    int4 = work.settings["method"].endswith(":int4")
    config = int4_config(work) if int4 else intx_config(work.settings)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    layers = dict(linear_layers(model))
    with work.quantizing():
        quantize_(model, config, filter_fn=lambda module, name: name in layers)
    settings = TorchAoConfig(config).to_dict()
    work.used = settings
    model.config.quantization_config = settings
    codes: dict[str, torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        parts = int4_parts(layer.weight) if int4 else intx_parts(layer.weight)
        weight = int4_weight(layer.weight, parts) if int4 else layer.weight.dequantize()
        weights[name] = weight
        for part, tensor in parts.items():
            codes[f"{name}.{part}"] = tensor
    work.write_dequantized(weights)
    work.write_codes(codes)
    save(model, work)


def intx_config(settings: dict[str, Any]) -> IntxWeightOnlyConfig:
    """Integers of so many bits, in groups or per channel."""
    group = settings["group_size"]
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{settings['bits']}"),
        granularity=PerAxis(0) if group is None else PerGroup(group),
        mapping_type=MappingType.SYMMETRIC if settings["symmetric"] else MappingType.ASYMMETRIC,
    )


def int4_config(work: Work) -> PrototypeInt4WeightOnlyConfig:
    """Four bits in the layout of PyTorch's kernel for CPUs."""
    return PrototypeInt4WeightOnlyConfig(
        group_size=work.settings["group_size"],
        int4_choose_qparams_algorithm=work.parameters["algorithm"],
        set_inductor_config=False,  # of a compiler that is not used here
    )


def intx_parts(weight: Any) -> dict[str, torch.Tensor]:
    """Of IntxUnpackedToInt8Tensor, whose codes and zero points are counted from the middle."""
    bits = int(str(weight.target_dtype).removeprefix("torch.int"))
    lowest = -(2 ** (bits - 1))
    return {
        "codes": (weight.qdata.short() - lowest).byte(),
        "scale": weight.scale,
        "zero_point": (weight.zero_point.short() - lowest).byte(),
    }


def int4_parts(weight: Any) -> dict[str, torch.Tensor]:
    """Of Int4OpaqueTensor: (code - 8) * scale + zero, in an order that depends on the processor.

    So its kernel reads the codes: its product with the identity at scale 1 and zero 0. They are
    small integers, which bfloat16 holds, and in which the kernel is fast.
    """
    columns = weight.shape[1]
    neutral = torch.zeros_like(weight.scale_and_zero, dtype=torch.bfloat16)
    neutral[..., 0] = 1
    levels = torch.ops.aten._weight_int4pack_mm_for_cpu(
        torch.eye(columns, dtype=torch.bfloat16), weight.qdata, weight.block_size[1], neutral
    )
    scale, zero = weight.scale_and_zero.transpose(0, 1).unbind(-1)  # (out, groups)
    return {
        "codes": (levels.T + MIDDLE).byte(),
        "scale": scale,
        "zero_point": MIDDLE - zero / scale,
    }


def int4_weight(weight: Any, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """(out, in) of its parts; the package has no function for it, so its product is looked at.

    AssertionError where that is another one.
    """
    groups = parts["codes"].unflatten(1, (-1, weight.block_size[1]))
    levels = groups - parts["zero_point"][..., None]
    dequantized = (levels * parts["scale"][..., None]).flatten(1)
    probe = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0))
    product = torch.nn.functional.linear(probe, weight)
    torch.testing.assert_close(product, probe @ dequantized.T, rtol=1e-4, atol=1e-4)
    return dequantized


def save(model: PreTrainedModel, work: Work) -> None:
    """A folder as transformers writes it, also of the layout that torchao cannot write yet."""
    tensors = {}
    opaque = {}
    for name, tensor in model.state_dict().items():
        if type(tensor).__name__ == "Int4OpaqueTensor":
            layer, _, leaf = name.rpartition(".")
            for part in tensor.tensor_data_names:
                opaque[f"{layer}._{leaf}_{part}"] = getattr(tensor, part)
        elif name not in (model._tied_weights_keys or ()):
            tensors[name] = tensor
    flat, metadata = flatten_tensor_state_dict(tensors)
    work.checkpoint.mkdir()
    save_file(flat | opaque, work.checkpoint / "model.safetensors", metadata | {"format": "pt"})
    model.config.save_pretrained(work.checkpoint)


if __name__ == "__main__":
    run(quantize)
