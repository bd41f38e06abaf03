"""Models of transformers: configurations, skeletons and weights, loaded whole or refused.

transformers draws at random what a checkpoint lacks, asks on the terminal whether to run code of a
folder, and unpickles `.bin` files. None of that happens here: tensors that are missing, of another
shape or not finite are errors, code runs only for a source that says `trust_remote_code`, and
weights are safetensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbench.errors import ModelError, StoreError
from qbench.files.codes import refuse_codes
from qbench.files.model_folder import quantization_settings
from qbench.files.ordinary import require_ordinary_files
from qbench.files.shards import Entry, Shards, read_json, require_usual_names
from qbench.models.empty import built_empty
from qbench.models.experts import unfuse_experts
from qbench.models.gguf_config import completed, tensors_left_out
from qbench.models.gguf_file import gguf_header, stored_dtype, torch_shapes
from qbench.models.gguf_tokenizer import load_gguf_tokenizer
from qbench.models.head import say_own_head
from qbench.models.limits import built, refuse_implausible
from qbench.models.pretrained import explained, from_transformers
from qbench.models.source import ALIASES, ModelSource, torch_dtype
from qbench.models.tokenizers import load_tokenizer

_SHOWN = 3  # names of tensors in a message
_OF_THE_HUB = 100_000  # tensors, for the time that building may take: how many there are is unknown
_PACKED = 16  # parameters in one number, of 2 bits in 32
_SMALL = 1 << 25  # parameters that may be missing: that they are is said by name
# Shapes and dtypes as the models' own config.json on the hub and their papers state them. Those of
# GPT-2 name no dtype; theirs is that of their files.
_CONFIGS = Path(__file__).with_name("configs")


def load_config(source: ModelSource) -> Any:
    """The transformers configuration; ModelError saying what to do where it cannot be had."""
    if source.gguf:
        state = source.path.stat()
        return deepcopy(_gguf_config(source, state.st_size, state.st_mtime_ns))
    if source.local and _config_of(source).is_file():
        return explained(source, lambda: read_config(_config_of(source), source.trust_remote_code))
    from transformers import AutoConfig

    if source.config is not None:
        return AutoConfig.for_model(**read_json(source.config))
    return from_transformers(source, AutoConfig)


def with_config(source: ModelSource, announce: Callable[[str], None]) -> ModelSource:
    """A model that can be planned: with the built-in config of an alias where the hub gives none.

    announce: is told so, with the reason. A pinned revision stays as it is, since nothing is known
    of it here, and so does any other model.
    """
    names = [name for name, location in ALIASES.items() if location == source.location]
    if source.local or source.revision or not names:
        return source
    try:
        load_config(source)
    except ModelError as error:
        announce(f"planned from the config of {names[0]} that qbench brings: {error}")
        return replace(source, config=_CONFIGS / f"{names[0]}.json")
    return source


def read_config(path: Path, trust_remote_code: bool = False, tensors: int = 0) -> Any:
    """The transformers configuration in a config.json, read within `qbench.models.limits`.

    tensors: how many the folder's files hold. StoreError where the limits do not do; what
    transformers raises passes through.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    require_ordinary_files(path.parent)
    content = read_json(path)
    # Importing a class takes up to two seconds, which are not the folder's doing.
    with suppress(KeyError, TypeError):
        CONFIG_MAPPING[content.get("model_type")]
    if trust_remote_code:
        _import_own_code(content.get("auto_map"), "AutoConfig", str(path.parent))

    def load() -> Any:
        return AutoConfig.from_pretrained(path.parent, trust_remote_code=trust_remote_code)

    return built(path, load, tensors)


@lru_cache(maxsize=8)
def _gguf_config(source: ModelSource, size: int, changed: int) -> Any:
    """The configuration of a GGUF file, of which transformers makes lists of all words first.

    size, changed: of the file, so that another one under its name is read anew. Its dtype is that
    of the weights, unless these are in blocks.
    """
    from transformers import AutoConfig

    header = gguf_header(source)
    config = from_transformers(source, AutoConfig)
    config.dtype = stored_dtype(header)
    return explained(source, lambda: completed(config, source, header))


def load_skeleton(source: ModelSource) -> Any:
    """The model without its weights, from the config alone, with experts as linear layers.

    ModelError as for `load_config` and `unfuse_experts`, StoreError where its files cannot hold
    what the config describes.
    """
    entries = _entries(source)
    model = _unfilled(source, len(entries) if source.local else _OF_THE_HUB)
    if source.local and entries:
        _require_room(source, model, entries)
    unfuse_experts(model)
    return model


def import_model_class(config: Any, trust_remote_code: bool = False) -> None:
    """Import the module that a config's model stands in, before time is limited.

    trust_remote_code: whether it may be one that the model brings. What that raises passes through.
    """
    from transformers import AutoModelForCausalLM

    with suppress(KeyError, ImportError, AttributeError):
        AutoModelForCausalLM._model_mapping[type(config)]
    if trust_remote_code:
        own = getattr(config, "auto_map", None)
        _import_own_code(own, AutoModelForCausalLM.__name__, config.name_or_path)


def _import_own_code(auto_map: Any, kind: str, place: str) -> None:
    """Import the class of this kind that a model brings, with all that its module imports.

    auto_map: of its config; what is no such thing is left to transformers. place: the folder or hub
    id that the config is of.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = auto_map.get(kind) if isinstance(auto_map, Mapping) else None
    if isinstance(reference, str):
        get_class_from_dynamic_module(reference, place)


def load_model(source: ModelSource, dtype: str) -> tuple[Any, Any]:
    """(model, tokenizer), on the CPU, in evaluation mode, with experts as linear layers.

    dtype: of the weights, one of `DTYPES`. ModelError saying what to do where one cannot be had,
    and where the checkpoint and the model do not hold the same tensors.
    """
    model = load_weights(source, dtype)
    return model, load_gguf_tokenizer(source) if source.gguf else load_tokenizer(source)


def load_weights(source: ModelSource, dtype: str) -> Any:
    """The model that `load_model` gives. Raises what that raises of it."""
    from transformers import AutoModelForCausalLM

    if source.local:
        entries = _entries(source)
        if entries:  # else there is nothing to load, as transformers will say
            _require_room(source, _unfilled(source, len(entries)), entries)
    model, report = from_transformers(
        source,
        AutoModelForCausalLM,
        dtype=torch_dtype(dtype),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are reported, and refused below
        **(_dequantized(source) if source.gguf else {"use_safetensors": True}),
    )
    _require_whole(source, report)
    if source.gguf:
        _forget_the_file(model)
    # The unquantized model runs the same operations as the quantized one.
    unfuse_experts(model, refuse=False)
    say_own_head(model)
    refuse_not_finite(model.state_dict().items(), f"model {source.name!r}")
    return model.eval()


def _dequantized(source: ModelSource) -> dict[str, Any]:
    """What `from_pretrained` is told of a GGUF file: its config, and to keep no blocks."""
    options = {"config": load_config(source)}
    with suppress(ImportError):  # older versions always dequantize
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    return options


def _forget_the_file(model: Any) -> None:
    """Let a model be an ordinary one, of dense weights, where it came out of a GGUF file."""
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "is_quantized"),
        (model, "quantization_method"),
    ):
        with suppress(AttributeError):
            delattr(owner, name)


def _unfilled(source: ModelSource, tensors: int) -> Any:
    """The model as transformers makes it, without its weights, built within limits.

    tensors: how many its files hold.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    explained(source, lambda: import_model_class(config, source.trust_remote_code))

    def build() -> Any:
        return AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)

    model = explained(
        source, lambda: built(_config_of(source), lambda: built_empty(build), tensors)
    )
    if source.gguf:
        unused = explained(source, lambda: tensors_left_out(model, gguf_header(source)))
        if unused:
            raise ModelError(
                f"model {source.name!r}: transformers' reader of GGUF has no place for "
                f"{len(unused)} tensors of the file ({_first(unused)}), and would leave them out; "
                "give a folder with the model's safetensors"
            )
    return model


def _require_room(source: ModelSource, model: Any, entries: Mapping[str, Entry]) -> None:
    """StoreError where a model has more parameters than its files, so that they would be invented.

    model: without its weights. Those of other programs' formats pack many into one number.
    """
    packed = 1
    if not source.gguf:
        config = read_json(_config_of(source))
        if quantization_settings(Path(source.location), config) is not None:
            packed = _PACKED
    declared = sum(parameter.numel() for parameter in model.parameters())
    held = sum(prod(entry.shape) for entry in entries.values())
    if declared > 2 * packed * held + _SMALL:
        raise StoreError(
            f"{_config_of(source)} describes a model of {declared:,} parameters, and the files "
            f"hold {held:,} numbers; copy the folder again"
        )


def _entries(source: ModelSource) -> Mapping[str, Entry]:
    """The headers of a local model's tensors, empty where a folder has no safetensors.

    StoreError where its config cannot be true of them, or does not say that they hold codes.
    """
    if source.gguf:
        shapes = torch_shapes(gguf_header(source))
        # Of blocks there is no dtype; of these only the shapes are asked for.
        entries = {name: Entry(source.path, torch.uint8, shape) for name, shape in shapes.items()}
        refuse_implausible(load_config(source).to_dict(), entries, source.path)
        return entries
    folder = Path(source.location)
    if not source.local or not any(folder.glob("*.safetensors")):
        return {}
    require_ordinary_files(folder)
    entries = Shards(folder, mapped=False).entries
    config = read_json(_config_of(source))
    refuse_implausible(config, entries, _config_of(source))
    if quantization_settings(folder, config) is None:
        require_usual_names(folder)
        refuse_codes(folder, entries)
    return entries


def _config_of(source: ModelSource) -> Path:
    """The file that describes the model."""
    return source.path if source.gguf else Path(source.location) / "config.json"


def refuse_not_finite(tensors: Any, place: str) -> None:
    """ModelError naming the first of these (name, tensor) pairs that holds NaN or infinity."""
    for name, tensor in tensors:
        # A sum is one pass without a second tensor; NaN and infinity survive it.
        if tensor.is_floating_point() and not tensor.is_meta and not _sum_is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise ModelError(
                    f"{place}: {bad} of the {tensor.numel()} numbers of {name} are NaN or "
                    "infinite; repair the checkpoint or copy it again"
                )


def _sum_is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.sum(dtype=torch.float64)))


def _require_whole(source: ModelSource, report: dict[str, Any]) -> None:
    """ModelError where tensors are missing or do not fit; a warning names what is not used."""
    problems = []
    for key, words in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        names = sorted(
            str(entry[0] if isinstance(entry, tuple) else entry) for entry in report[key]
        )
        if names:
            problems.append(f"{len(names)} tensors are {words} ({_first(names)})")
    failed = report.get("error_msgs") or report.get("conversion_errors")
    if failed:
        problems.append(f"tensors could not be converted ({' '.join(str(failed).split())[:200]})")
    if problems:
        raise ModelError(
            f"model {source.name!r} ({source.location}): {' and '.join(problems)}, and would be "
            "drawn at random; give a whole checkpoint whose tensors have transformers' names"
        )
    unused = sorted(map(str, report["unexpected_keys"]))
    if unused:
        warnings.warn(
            f"model {source.name!r}: {len(unused)} tensors of the checkpoint are not used "
            f"({_first(unused)})",
            stacklevel=3,
        )


def _first(names: list[str]) -> str:
    rest = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
