"""The model that a folder's config.json describes: built without data, and filled from the files.

A damaged entry makes transformers raise nearly anything; all of it becomes a StoreError here.
Nothing of a folder is executed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbench.errors import StoreError
from qbench.files.shards import read_json
from qbench.models.empty import built_empty
from qbench.models.experts import unfuse_experts
from qbench.models.head import tie_head
from qbench.models.limits import built
from qbench.models.loading import import_model_class, read_config
from qbench.models.pretrained import is_panic
from qbench.models.tokenizer_trial import try_tokenizer
from qbench.models.tokenizers import SETTINGS, has_vocabulary, keep_word_on_bos

# Tensors that older versions of transformers stored, and that every model computes by itself.
_COMPUTED = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"\.masked_bias$")


def read_skeleton(folder: Path, tensors: int, dtype: torch.dtype | None = None) -> Any:
    """The model with its parameters on the meta device and experts as linear layers.

    tensors: how many the folder's files hold. dtype: what the model is loaded in, in place of that
    which the config states. StoreError where config.json describes no model, or
    one whose building takes more than `qbench.models.limits` grants.
    """
    from transformers import AutoModelForCausalLM

    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # transformers 4
        from transformers.modeling_utils import no_init_weights
    place = folder / "config.json"

    def skeleton() -> Any:
        with no_init_weights():
            model = built_empty(lambda: AutoModelForCausalLM.from_config(config))
        unfuse_experts(model, refuse=False)
        return model

    try:
        config = read_config(place, tensors=tensors)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        if dtype is not None:
            config.dtype = dtype
        import_model_class(config)
        return built(place, skeleton, tensors)
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"{place} describes no model: {_short(error)}; copy it again") from None


def read_generation(model: Any, folder: Path) -> None:
    """Give a model the folder's generation_config.json, such as its several EOS, if it has one.

    StoreError where the file is damaged.
    """
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return
    read_json(folder / "generation_config.json")  # no link, no pipe, an object
    try:
        model.generation_config = GenerationConfig.from_pretrained(folder)
    except Exception as error:
        raise StoreError(
            f"{folder / 'generation_config.json'} cannot be read: {_short(error)}; copy it again"
        ) from None


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer; None where the folder has none, StoreError where it is damaged."""
    from transformers import AutoTokenizer

    if not (folder / SETTINGS).is_file():
        return None
    if not has_vocabulary(folder):
        raise StoreError(
            f"the tokenizer in {folder} has no vocabulary, such as tokenizer.json; copy it again"
        )
    try_tokenizer(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise StoreError(
            f"the tokenizer in {folder} cannot be read: {_short(error)}; copy it again"
        ) from None
    keep_word_on_bos(tokenizer, folder / SETTINGS)
    return tokenizer


def fill(model: Any, tensors: dict[str, Tensor], folder: Path) -> None:
    """Assign `tensors` to a skeleton, whose quantized layers have been packed before.

    StoreError by name where a tensor is missing, unexpected, of another shape, or holds integers
    where the model has floating numbers.
    """
    for name, own in model.state_dict().items():
        if name in tensors and tensors[name].is_floating_point() != own.is_floating_point():
            raise StoreError(
                f"{folder}: {name} is {tensors[name].dtype}, and the model has {own.dtype}; "
                "copy or quantize again"
            )
    try:
        unexpected = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    except RuntimeError as error:
        raise StoreError(
            f"{folder}: {' '.join(str(error).split())[:300]}; copy or quantize again"
        ) from None
    tie_head(model)
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    _refuse(missing, unexpected, folder)


def require_whole(model: Any, stored: Collection[str], folder: Path) -> None:
    """StoreError as of `fill` where files of these tensors would leave gaps in a model.

    model: a skeleton whose quantized layers have been packed. stored: the names of all tensors in
    the files. Of tensors that are tied one is enough. A head of another kind, such as one that
    classifies, is no gap.
    """
    sources = getattr(model, "all_tied_weights_keys", None) or {}  # of transformers 5
    own = f"{model.base_model_prefix}." if model.get_output_embeddings() is None else ""
    first: dict[int, str] = {}
    missing = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        source = sources.get(name, first.setdefault(id(tensor), name))
        if name.startswith(own) and not (name in stored or source in stored):
            missing.append(name)
    _refuse(missing, [], folder)


def _refuse(missing: list[str], unexpected: list[str], folder: Path) -> None:
    if missing or unexpected:
        raise StoreError(
            f"{folder}: missing {missing[:3] or 'nothing'}, "
            f"unexpected {unexpected[:3] or 'nothing'}; copy or quantize again"
        )


def without_leftovers(model: Any, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Tensors of another program's folder, without those that programs leave there for nothing.

    Such are frequencies of rotary embeddings, positions and causal masks, which are computed,
    biases of zero for layers without one, and what transformers ignores in files of this model.
    StoreError naming any other that the model has no place for, as its numbers would be left out.
    """
    known = model.state_dict().keys()
    ignored = [*_COMPUTED, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    kept: dict[str, Tensor] = {}
    unused: list[str] = []
    for name, tensor in tensors.items():
        if name in known:
            kept[name] = tensor
        elif not (_is_nothing(name, tensor) or any(re.search(key, name) for key in ignored)):
            unused.append(name)
    if unused:
        raise StoreError(
            f"{folder}: a {type(model).__name__} has no place for {', '.join(unused[:3])}, which "
            f"makes {len(unused)} of its tensors that would be left out; fetch the checkpoint "
            "again, or evaluate it with the program it is for"
        )
    return kept


def _is_nothing(name: str, tensor: Tensor) -> bool:
    """Whether a `.bias` is zero, or a causal mask of that name, (1, 1, tokens, tokens)."""
    return name.endswith(".bias") and (tensor.dim() == 4 or not bool(tensor.any()))


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
