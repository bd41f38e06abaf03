"""The names that a checkpoint's tensors are published under, and those of the model in memory.

transformers 5 renames tensors while it loads, and stacks those of experts; `qbench.models.experts`
takes the stacks apart again, under names of its own. What other programs read has the published
names. Both directions go by transformers' own table (`transformers.conversion_mapping`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from qbench.models.experts import Experts

_PROJECTIONS = ("gate_proj", "up_proj")  # the order in which a gate_up_proj joins them


def published(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model whose experts are linear layers, under their published names.

    tensors: by the names in `model`, whole layers in floating point. Under transformers 4 these are
    the published names already.
    """
    stacked = _stacked(model, tensors)
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return stacked
    return {name: t.contiguous() for name, t in revert_weight_conversion(model, stacked).items()}


def own_names(config: Any) -> Callable[[str], str]:
    """A function from the published name of a tensor to its name in memory.

    config: of transformers. The names end in the tensor's own, such as `.weight`.
    """
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            apply_converters,
            apply_renamings,
        )
    except ImportError:
        return lambda name: name
    mapping = get_checkpoint_conversion_mapping(config.model_type) or []
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}

    def own(name: str) -> str:
        renamed: str = apply_renamings(name, renamings)
        _, pattern = apply_converters(renamed, converters)
        if pattern is None or ".experts." not in renamed:
            return renamed
        sources = by_pattern[pattern].source_patterns
        projection = by_pattern[pattern].target_patterns[0].rpartition(".")[2]
        if len(sources) == len(_PROJECTIONS):
            projection = _PROJECTIONS[sources.index(pattern)]
        expert, _, tensor = renamed.rpartition(".")
        return f"{expert.rpartition('.')[0]}.{projection}.{tensor}"

    return own


def published_names(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The published name of each tensor of a model that has one: the inverse of `own_names`.

    tensors: as of `published`; they need no data.
    """
    own = own_names(model.config)
    return {own(name): name for name in published(model, tensors)}


def _stacked(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, those of experts in stacks again, as transformers has them in memory."""
    left = dict(tensors)
    for path, module in model.named_modules():
        if not isinstance(module, Experts):
            continue
        for part in ("weight", "bias"):
            suffix = "" if part == "weight" else "_bias"
            for name, stack in _stacks(module, path, part, left).items():
                left[f"{path}.{name}{suffix}"] = stack
    return left


def _stacks(
    experts: Experts, path: str, part: str, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """gate_up_proj or up_proj, and down_proj, of one module; its layers are taken out of `tensors`.

    part: `weight` or `bias`, of which there may be none.
    """
    layers: dict[str, list[Tensor]] = {}
    for index in range(len(experts)):
        for projection in (*_PROJECTIONS, "down_proj"):
            tensor = tensors.pop(f"{path}.{index}.{projection}.{part}", None)
            if tensor is not None:
                layers.setdefault(projection, []).append(tensor)
    stacks = {name: torch.stack(members) for name, members in layers.items()}
    first: Any = experts[0]
    if "gate_proj" in stacks:
        joined = (stacks.pop("gate_proj"), stacks.pop("up_proj"))
        if first.interleaved:
            stacks["gate_up_proj"] = torch.stack(joined, 2).flatten(1, 2)
        else:
            stacks["gate_up_proj"] = torch.cat(joined, 1)
    if part == "weight" and first.shared.is_transposed:
        stacks = {name: stack.transpose(1, 2) for name, stack in stacks.items()}
    return stacks
