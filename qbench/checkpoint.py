"""Saved models: an ordinary Hugging Face directory whose quantized layers are stored packed.

`config.json` carries `quantization_config` (quant_method `qbench`, a version, the method, and per layer the format and
its specification); `model.safetensors` carries `<layer>.<part>` for quantized layers and everything else as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qbench.blocks import quantizable, write_weight
from qbench.contracts import WeightFormat
from qbench.errors import StoreError
from qbench.experts import unfuse_experts
from qbench.formats import from_tensors

VERSION = 1
WEIGHTS = "model.safetensors"
LOG = "quantize_log.json"


def save(
    folder: Path,
    model: Any,
    tokenizer: Any,
    weights: Mapping[str, WeightFormat],
    manifest: Mapping[str, Any],
    log: Mapping[str, Any],
) -> Path:
    """Write the directory beside its place and rename it there: whole or not at all. An existing one is replaced.

    log: what the method has to tell, if anything, goes into a file of its own.
    """
    config = model.config.to_dict() | {
        "quantization_config": {
            "quant_method": "qbench",
            "version": VERSION,
            **manifest,
            "modules": {name: {"format": weight.format, **weight.spec()} for name, weight in weights.items()},
        }
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            part = Path(scratch) / folder.name
            part.mkdir()
            save_file(_tensors(model, weights), part / WEIGHTS, metadata={"format": "pt"})
            (part / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
            if log:
                (part / LOG).write_text(json.dumps(log) + "\n")
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.save_pretrained(part)
            if tokenizer is not None:
                tokenizer.save_pretrained(part)
            _replace(part, folder)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"the quantized model cannot be written to {folder}: {error}; free space or choose another folder"
        ) from error
    return folder


def load(folder: Path, dtype: str) -> tuple[Any, Any, dict[str, WeightFormat], dict[str, Any]]:
    """(model, tokenizer, quantized weights, manifest). Every tensor of the file is used, and none may be missing."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    stated = _quantization_config(folder)
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config)
    unfuse_experts(model, refuse=False)
    kind = getattr(torch, dtype)
    modules = stated.pop("modules")
    weights: dict[str, WeightFormat] = {}
    state: dict[str, Tensor] = {}
    with _opened(folder / WEIGHTS) as file:
        names = set(file.keys())
        for name, spec in modules.items():
            parts = {
                key.removeprefix(f"{name}."): key
                for key in names
                if key.startswith(f"{name}.") and key != f"{name}.bias"
            }
            names -= set(parts.values())
            weights[name] = from_tensors(
                spec["format"],
                {part: file.get_tensor(key) for part, key in parts.items()},
                {key: value for key, value in spec.items() if key != "format"},
            )
        for name in names:
            tensor = file.get_tensor(name)
            state[name] = tensor.to(kind) if tensor.is_floating_point() else tensor
    _fill(model, state, weights, kind, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer_config.json").is_file() else None
    return model.eval(), tokenizer, weights, stated


def read_log(folder: Path) -> dict[str, Any]:
    """What the method told, by block; empty where it told nothing. StoreError where the file is damaged."""
    path = folder / LOG
    try:
        log = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}; quantize again") from None
    if not isinstance(log, dict):
        raise StoreError(f"{path} holds a {type(log).__name__}, not an entry per block; quantize again")
    return log


def bytes_on_disk(folder: Path) -> int:
    """Size of all files in the directory."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def is_quantized(folder: Path) -> bool:
    """Whether a directory was written by `save`."""
    try:
        return _quantization_config(folder)["quant_method"] == "qbench"
    except StoreError:
        return False


def _tensors(model: nn.Module, weights: Mapping[str, WeightFormat]) -> dict[str, Tensor]:
    """What is stored: packed parts, and all other tensors once each (tied ones share storage)."""
    packed = {
        f"{name}.{part}": tensor for name, weight in weights.items() for part, tensor in weight.to_tensors().items()
    }
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") in weights or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        packed[name] = tensor
    return {name: tensor.detach().cpu().contiguous() for name, tensor in packed.items()}


def _fill(
    model: Any, state: dict[str, Tensor], weights: Mapping[str, WeightFormat], kind: torch.dtype, folder: Path
) -> None:
    layers = quantizable(model)
    for name, weight in weights.items():
        if name not in layers:
            raise StoreError(f"{folder}: quantized layer {name!r} does not exist in a {type(model).__name__}")
        layers[name].weight = nn.Parameter(torch.empty(layers[name].weight.shape, dtype=kind), requires_grad=False)
        write_weight(layers[name], weight.dequantize())
    unexpected = model.load_state_dict(state, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if missing or unexpected:
        raise StoreError(
            f"{folder / WEIGHTS}: missing {missing[:3] or 'nothing'}, unexpected {unexpected[:3] or 'nothing'}"
        )


def _quantization_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        stated = json.loads(path.read_text())["quantization_config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is not the config of a model quantized by qbench ({type(error).__name__}: {error})"
        ) from None
    if stated.get("quant_method") != "qbench" or stated.get("version") != VERSION:
        raise StoreError(
            f"{path} states quant_method={stated.get('quant_method')!r}, version={stated.get('version')!r}; "
            f"this qbench reads quant_method='qbench', version={VERSION}"
        )
    return stated


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read: {error}; quantize again") from None


def _replace(part: Path, folder: Path) -> None:
    """Flush the files, then put the directory in its place; an older one steps aside first."""
    for file in part.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():
        old = part.parent / "old"
        folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        part.rename(folder)
