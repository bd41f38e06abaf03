"""Where scales between layers start: the difficulty of large inputs, moved half-way to the weights.

SmoothQuant (Xiao et al. 2023, arXiv:2211.10438, equation 4), as OmniQuant's authors start from it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qbench.calibration.folding import Fold
from qbench.calibration.watching import watch
from qbench.contracts import BlockInputs
from qbench.models.blocks import read_weight

SMALLEST = 1e-2  # below which a scale of LET is cut off, as in the authors' code


def largest_inputs(block: nn.Module, inputs: BlockInputs, folds: list[Fold]) -> list[Tensor]:
    """max|x| over the calibration tokens, (in,) float32 for each fold."""
    largest = []
    for fold in folds:
        largest.append(torch.zeros(len(fold.channels), device=fold.channels.device))

    def record(i: int, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        rows = args[0].flatten(0, -2).float()  # (tokens, in)
        largest[i] = torch.maximum(largest[i], rows.abs().amax(0))

    # All layers of a fold have the same input.
    watch(block, inputs, [(fold.layers[0], partial(record, i)) for i, fold in enumerate(folds)])
    return largest


def migration(block: nn.Module, fold: Fold, largest: Tensor) -> Tensor:
    """max|x|^0.5 / max|w|^0.5 per channel, (in,): the start of SmoothQuant, as the authors take it.

    largest: max|x|, (in,). max|w| is over the rows of all layers of the fold.
    """
    columns = []
    for name in fold.layers:
        W = read_weight(block.get_submodule(name)).float()  # (out, in)
        columns.append(W.abs().amax(0))
    weight = torch.stack(columns).amax(0)  # (in,)
    scale = (largest.clamp_min(1e-5) / weight.clamp_min(1e-5)).sqrt()
    return fold.shared(scale.clamp_min(SMALLEST))
