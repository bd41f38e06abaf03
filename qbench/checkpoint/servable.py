"""Whether a server that loads by itself would have the whole model, and compute with all of it.

vLLM does not ask whether every parameter of a quantized model has been in the files, so a folder is
held against its config, and the config against the model, before vLLM reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qbench.checkpoint.config import compare, read_layout
from qbench.checkpoint.huggingface import snapshot
from qbench.checkpoint.packed_linear import pack, packed_layers
from qbench.checkpoint.skeleton import read_skeleton, require_whole
from qbench.errors import ConfigError
from qbench.files.shards import Shards, read_json
from qbench.formats import Dense
from qbench.models.experts import Experts
from qbench.models.limits import refuse_implausible

_PARTS = 8  # tensors to a quantized layer, about: large models may take longer to build


def require_servable(name: str, revision: str | None = None) -> None:
    """StoreError where tensors are missing, ConfigError where vLLM has no place for a layer.

    name: a folder of ours, or a model of the hub; the files of the latter, which are still to come,
    are not looked at.
    """
    folder = snapshot(name, revision)
    config = read_json(folder / "config.json")
    layout = read_layout(config, folder / "config.json")
    modules = layout.modules()
    shards = None
    if Path(name).is_dir() and any(folder.glob("*.safetensors")):  # else vLLM reads other files
        shards = Shards(folder, mapped=False)
        refuse_implausible(config, shards.entries, folder / "config.json")
        compare(layout, shards)
    tensors = _PARTS * len(modules) if shards is None else len(shards.entries)
    model = read_skeleton(folder, tensors)
    pack(model, {name: group.weight() for name, group in modules.items()})
    if shards is not None:
        require_whole(model, shards.entries, folder)
    _refuse_experts(model)
    _refuse_transposed(model)


def _refuse_experts(model: Any) -> None:
    """ConfigError where a model has experts, whose names and stacks in vLLM are its own."""
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            raise ConfigError(
                f"{name} holds experts, and vLLM computes them in one layer of its own, which "
                "cannot use the products of qbench; load the model with transformers"
            )


def _refuse_transposed(model: Any) -> None:
    """ConfigError where a dense layer is stored as (out, in), and vLLM reads it as (in, out)."""
    for name, layer in packed_layers(model):
        if layer.kind == Dense.format and layer.transposed:
            raise ConfigError(
                f"{name} is in full precision, and vLLM reads such a layer of a "
                f"{type(model).__name__} transposed; quantize it, too, or load the model with "
                "transformers"
            )
