"""A model as it is published: its bits, and the dtype of its weights."""

from __future__ import annotations

import torch

from qbench.inspection.report import inspect
from qbench.models.loading import load_config
from qbench.models.source import ModelSource, local_folder
from qbench.records import Cell


def bits_as_it_is(source: ModelSource, cell: Cell) -> dict[str, float]:
    """Bits per weight of a published model: measured if it is quantized, else of its dtype."""
    folder = local_folder(source)
    if cell.stored_as is not None and (folder is not None or source.gguf):
        return dict(inspect(folder or source.path).bits_per_weight)
    bits = float(torch.finfo(published_dtype(source, cell)).bits)
    return {"total": bits, "weight": bits}


def published_dtype(source: ModelSource, cell: Cell) -> torch.dtype:
    """The dtype that a model's config states, or else the one in which it is evaluated."""
    stored = getattr(load_config(source), "dtype", None) or cell.dtype
    if isinstance(stored, str):  # a config's name of a dtype, such as "bfloat16"
        stored = getattr(torch, stored)
    return stored
