"""A walk over a model as tests want it: on the CPU, in float32, two sequences at a time, silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qbench.calibration.walk import walk_blocks, walk_linears
from qbench.contracts import BlockInputs


def silent(fraction: float, text: str) -> None:
    """Progress that nobody sees."""


def visit_layers(
    model: nn.Module, tokens: torch.Tensor, visit: Callable[..., Any], batch_size: int = 2
) -> None:
    """Call `visit(name, layer, stats)` for every linear layer of the decoder."""
    walk_linears(
        model,
        tokens,
        visit,
        device=torch.device("cpu"),
        progress=silent,
        batch_size=batch_size,
        dtype=torch.float32,
    )


def walked_block(
    model: nn.Module, tokens: torch.Tensor, index: int = 1
) -> tuple[nn.Module, BlockInputs, list[torch.Tensor]]:
    """One block, the inputs that the walk gives it, and its targets."""
    visits = []

    def visit(name: str, block: nn.Module, inputs: BlockInputs, targets: list[torch.Tensor]):
        visits.append((block, inputs, targets))

    walk_blocks(model, tokens, visit, torch.device("cpu"), silent, 2, torch.float32)
    return visits[index]
