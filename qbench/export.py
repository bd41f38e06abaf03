"""`qbench export`: a quantized folder for other programs, the same numbers or a refusal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import qbench
from qbench.checkpoint.folder import load_checkpoint
from qbench.checkpoint.packed_linear import unpack
from qbench.checkpoint.write_folder import save_checkpoint, unquantized_tensors, write_model_folder
from qbench.contracts import WeightFormat
from qbench.errors import ConfigError, QbenchError, unknown_name
from qbench.exchange.gguf_model import export_model_gguf
from qbench.exchange.gptq import checkpoint_format, to_gptq
from qbench.files.atomic import put, require_apart, require_place
from qbench.files.written_folder import require_writable
from qbench.formats import Dense, Uniform
from qbench.models.blocks import is_linear
from qbench.models.published_names import published, published_names
from qbench.read_back import BY_DEFAULT, prove, unproven


def export(
    folder: Path, target: str, output: Path, dtype: str = "auto", verify: bool | None = None
) -> Path:
    """Write a saved model, or a foreign one, to `output`: a folder, or for gguf a file.

    target: gptq, dense, gguf or qbench. dtype: of dense weights and of what is not quantized; auto
    is the folder's own. A layer inside the blocks that was left as it is keeps its own, but for
    `dense`. verify: read it back and compare logits before it is put at `output`; None
    does so up to 2 GB. ConfigError where the target cannot hold the same numbers, StoreError where
    the folder is damaged, the export reads back as another model, or `output` is the folder that is
    read or exists as something else than such a folder.
    """
    if target not in TARGETS:
        raise ConfigError(unknown_name("export format", target, TARGETS))
    if target == "gguf":
        require_place(output)
    else:
        require_writable(output)
    require_apart(output, folder)
    with unproven(output) as place:
        TARGETS[target](folder, place, dtype)
        size = sum(path.stat().st_size for path in place.parent.rglob("*"))
        if verify or (verify is None and size <= BY_DEFAULT):
            prove(folder, place, target, dtype)
        return put(place, output)


def _to_gptq(folder: Path, output: Path, dtype: str) -> Path:
    """The layout that gptqmodel, transformers and vLLM read."""
    checkpoint = load_checkpoint(folder, dtype, packed=True)
    if "head" in checkpoint.manifest:
        raise ConfigError(
            "the head is quantized, and in a GPTQ folder it is in full precision; "
            "quantize without --head-bits, or use --to dense"
        )
    weights = _uniform(checkpoint.weights)
    for name, weight in checkpoint.weights.items():
        if isinstance(weight, Dense):  # whose dtype need not be that of the others
            unpack(checkpoint.model, weight.weight.dtype, [name])
    bits, group_size = _common_settings(weights)
    layout = checkpoint_format(weights.values())
    others = unquantized_tensors(checkpoint.model, weights)
    published_name = _published_names(checkpoint.model, weights, others)
    tensors = {published_name(name): tensor for name, tensor in others.items()}
    for name, weight in weights.items():
        try:
            parts = to_gptq(weight, layout)
        except QbenchError as error:
            raise ConfigError(f"layer {name}: {error}") from None
        for part, tensor in parts.items():
            tensors[f"{published_name(name)}.{part}"] = tensor
    entry = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": False,  # a group is a run of inputs
        "sym": layout == "gptq",  # gptqmodel reads this layout only where sym is true
        "lm_head": False,  # the head is not quantized
        "checkpoint_format": layout,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"qbench:{qbench.__version__}"]},
    }
    dense = _dense_layers(checkpoint.model)
    if dense:
        # gptqmodel takes every linear layer of the blocks for a quantized one, but for these
        entry["dynamic"] = {f"-:^{re.escape(published_name(name))}$": {} for name in dense}
    return _write(output, checkpoint.model, checkpoint.tokenizer, tensors, entry)


def _published_names(
    model: Any, weights: Mapping[str, WeightFormat], others: Mapping[str, Tensor]
) -> Callable[[str], str]:
    """A function from the name of a tensor of `others`, or of a layer, to its published name."""
    whole = {name: tensor.to("meta") for name, tensor in others.items()}
    for name, weight in weights.items():
        whole[f"{name}.weight"] = torch.empty(weight.shape, device="meta")
    names = published_names(model, whole)
    layers: dict[str, str] = {}
    for own, name in names.items():
        layers[own.removesuffix(".weight")] = name.removesuffix(".weight")
    return lambda name: names.get(name) or layers.get(name, name)


def _dense_layers(model: Any) -> list[str]:
    """The linear layers, but for the head, that are not packed, by full name."""
    head = model.get_output_embeddings()
    return [name for name, layer in model.named_modules() if is_linear(layer) and layer is not head]


def _to_dense(folder: Path, output: Path, dtype: str) -> Path:
    """Every weight dequantized: for any program, at the size of the unquantized model."""
    checkpoint = load_checkpoint(folder, dtype, packed=False)
    tensors = published(checkpoint.model, unquantized_tensors(checkpoint.model, {}))
    return _write(output, checkpoint.model, checkpoint.tokenizer, tensors, None)


def _to_gguf(folder: Path, output: Path, dtype: str) -> Path:
    """One file for llama.cpp, in the smallest types that hold the weights exactly."""
    checkpoint = load_checkpoint(folder, dtype, packed=True)
    others = unquantized_tensors(checkpoint.model, checkpoint.weights)
    return export_model_gguf(
        checkpoint.model.config, checkpoint.tokenizer, checkpoint.weights, others.items(), output
    )


def _to_qbench(folder: Path, output: Path, dtype: str) -> Path:
    """A foreign folder in our own format."""
    checkpoint = load_checkpoint(folder, dtype, packed=True)
    return save_checkpoint(
        output,
        checkpoint.model,
        checkpoint.tokenizer,
        checkpoint.weights,
        checkpoint.manifest,
        log={},
    )


TARGETS: dict[str, Callable[[Path, Path, str], Path]] = {
    "gptq": _to_gptq,
    "dense": _to_dense,
    "gguf": _to_gguf,
    "qbench": _to_qbench,
}


def _uniform(weights: Mapping[str, WeightFormat]) -> dict[str, Uniform]:
    """The weights but for layers left dense; ConfigError naming the first that is not uniform."""
    quantized = {name: weight for name, weight in weights.items() if weight.format != Dense.format}
    uniform: dict[str, Uniform] = {}
    for name, weight in (quantized or weights).items():
        if not isinstance(weight, Uniform):
            raise ConfigError(
                f"layer {name} has format {weight.format!r}, and GPTQ holds uniform ones; "
                "use --to dense"
            )
        uniform[name] = weight
    return uniform


def _common_settings(weights: Mapping[str, Uniform]) -> tuple[int, int]:
    """(bits, group size) of all weights; ConfigError where they differ.

    A group size of -1 stands for one group per output, which may have another length in each layer:
    where all layers have one, and not where a layer has no more inputs than a group of the others.
    """
    per_channel = all(weight.group_size == weight.in_features for weight in weights.values())
    settings: set[tuple[int, int]] = set()
    for weight in weights.values():
        settings.add((weight.bits, -1 if per_channel else weight.group_size))
    if len(settings) != 1:
        raise ConfigError(
            f"layers differ in (bits, group_size): {sorted(settings)}; "
            "a GPTQ folder has one for all"
        )
    return settings.pop()


def _write(
    output: Path,
    model: Any,
    tokenizer: Any,
    tensors: Mapping[str, Tensor],
    entry: Mapping[str, Any] | None,
) -> Path:
    """A folder of these tensors with the config of the model; entry: its quantization_config."""
    return write_model_folder(
        output, model.config, tokenizer, tensors, entry, model.generation_config
    )
