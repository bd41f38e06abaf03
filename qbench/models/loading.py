"""Models of transformers: configurations, skeletons and weights, loaded whole or refused.

transformers draws at random what a checkpoint lacks, asks on the terminal whether to run code of a
folder, and unpickles `.bin` files. None of that happens here: tensors that are missing, of another
shape or not finite are errors, code runs only for a source that says `trust_remote_code`, and
weights are safetensors.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from qbench.errors import ModelError
from qbench.models.experts import unfuse_experts
from qbench.models.pretrained import explained, from_transformers
from qbench.models.source import ModelSource, torch_dtype
from qbench.models.tokenizers import load_tokenizer

_SHOWN = 3  # names of tensors in a message


def load_config(source: ModelSource) -> Any:
    """The transformers configuration; ModelError saying what to do where it cannot be had."""
    from transformers import AutoConfig

    return from_transformers(source, AutoConfig)


def load_skeleton(source: ModelSource) -> Any:
    """The model without its weights, from the config alone, with experts as linear layers.

    ModelError as for `load_config` and `unfuse_experts`.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    if hasattr(config, "quantization_config"):
        del config.quantization_config

    def build() -> Any:
        with init_empty_weights():
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=source.trust_remote_code
            )

    model = explained(source, build)
    unfuse_experts(model)
    return model


def load_model(source: ModelSource, dtype: str) -> tuple[Any, Any]:
    """(model, tokenizer), on the CPU, in evaluation mode, with experts as linear layers.

    dtype: of the weights, one of `DTYPES`. ModelError saying what to do where one cannot be had,
    and where the checkpoint and the model do not hold the same tensors.
    """
    from transformers import AutoModelForCausalLM

    model, report = from_transformers(
        source,
        AutoModelForCausalLM,
        dtype=torch_dtype(dtype),
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are reported, and refused below
    )
    _require_whole(source, report)
    # The unquantized model runs the same operations as the quantized one.
    unfuse_experts(model, refuse=False)
    refuse_not_finite(model.state_dict().items(), f"model {source.name!r}")
    return model.eval(), load_tokenizer(source)


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
