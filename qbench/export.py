"""`qbench export`: a quantized folder for other programs, the same numbers or a refusal with its reason."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from qbench.checkpoint import folder as checkpoint
from qbench.errors import ConfigError, QbenchError, unknown_name
from qbench.exchange.gguf_model import export_model_gguf
from qbench.exchange.gptq import checkpoint_format, to_gptq
from qbench.formats import Uniform


def export(folder: Path, target: str, output: Path, dtype: str = "auto") -> Path:
    """Write a saved model, or a GPTQ or AWQ one, to `output`: a folder, or for gguf a file.

    target: gptq, dense, gguf or qbench. dtype: of dense weights and of what is not quantized; auto
    is the folder's own. ConfigError where the target cannot hold the same numbers, StoreError where
    the folder is damaged or `output` exists as something else than such a folder.
    """
    if target not in TARGETS:
        raise ConfigError(unknown_name("export format", target, TARGETS))
    return TARGETS[target](folder, output, dtype)


def _to_gptq(folder: Path, output: Path, dtype: str) -> Path:
    """The layout that gptqmodel, transformers and vLLM read; one bits and group size for the whole model."""
    model, tokenizer, weights, _ = checkpoint.load(folder, dtype, packed=True)
    uniform: dict[str, Uniform] = {}
    for name, weight in weights.items():
        if not isinstance(weight, Uniform):
            raise ConfigError(
                f"layer {name} has format {weight.format!r}, and GPTQ holds uniform ones; use --to dense"
            )
        uniform[name] = weight
    settings = {
        (weight.bits, -1 if weight.group_size == weight.in_features else weight.group_size)
        for weight in uniform.values()
    }
    if len(settings) != 1:
        raise ConfigError(
            f"layers differ in (bits, group_size): {sorted(settings)}; a GPTQ folder has one for all"
        )
    bits, group_size = settings.pop()
    layout = checkpoint_format(uniform.values())
    tensors: dict[str, Tensor] = {}
    for name, weight in uniform.items():
        try:
            tensors |= {
                f"{name}.{part}": tensor for part, tensor in to_gptq(weight, layout).items()
            }
        except QbenchError as error:
            raise ConfigError(f"layer {name}: {error}") from None
    entry = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": False,
        "sym": layout == "gptq",
        "lm_head": False,
        "checkpoint_format": layout,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"qbench:{version('qbench-llm')}"]},
    }
    tensors |= checkpoint.unquantized(model, uniform)
    return checkpoint.write_folder(
        output, model.config, tokenizer, tensors, entry, model.generation_config
    )


def _to_dense(folder: Path, output: Path, dtype: str) -> Path:
    """Every weight dequantized: for any program, at the size of the unquantized model."""
    model, tokenizer, _, _ = checkpoint.load(folder, dtype, packed=False)
    tensors = checkpoint.unquantized(model, {})
    return checkpoint.write_folder(
        output, model.config, tokenizer, tensors, None, model.generation_config
    )


def _to_gguf(folder: Path, output: Path, dtype: str) -> Path:
    """One file for llama.cpp, in the smallest types that hold the weights exactly."""
    model, tokenizer, weights, _ = checkpoint.load(folder, dtype, packed=True)
    others = checkpoint.unquantized(model, weights)
    return export_model_gguf(model.config, tokenizer, weights, others.items(), output)


def _to_qbench(folder: Path, output: Path, dtype: str) -> Path:
    """A foreign folder in our own format."""
    model, tokenizer, weights, facts = checkpoint.load(folder, dtype, packed=True)
    return checkpoint.save(output, model, tokenizer, weights, facts, {})


TARGETS: dict[str, Callable[[Path, Path, str], Path]] = {
    "gptq": _to_gptq,
    "dense": _to_dense,
    "gguf": _to_gguf,
    "qbench": _to_qbench,
}
