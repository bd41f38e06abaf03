"""How many cells are at work at a time on this machine, and what of it each of them has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from qbench.environment import available_memory, cores

if TYPE_CHECKING:
    from qbench.experiment.plan import Plan

MOST_ON_CPU = 4  # cells at a time, unless more are asked for
MEMORY_SHARE = 0.6  # of what is available, that cells at work may be estimated to take


def share_machine(plan: Plan) -> None:
    """Decide how many cells are at work at a time, on how many threads and on which GPU each.

    On one core each, cells of a small model are done sooner than one after the other on all: what
    is not a large product does not spread. On GPUs each cell has one for itself; where more cells
    are asked for than there are GPUs, they take turns. In main memory all must fit together.
    """
    left = len(plan.cells) - len(plan.skipped)
    gpus = visible_gpus() if plan.device == "cuda" else ()
    if plan.grid.workers is not None:
        plan.jobs = plan.grid.workers
    elif plan.device == "cpu":
        peak = max(estimated.peak_bytes for estimated in plan.estimates.values())
        plan.jobs = max(1, min(cores(), MOST_ON_CPU, _room(peak), left))
    else:
        plan.jobs = max(1, min(len(gpus), _room(plan.model_bytes), left))
    if plan.jobs > 1:
        plan.gpus = gpus
    plan.threads = max(1, min(torch.get_num_threads(), cores() // plan.jobs))


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    return tuple(map(str, range(torch.cuda.device_count())))


def _room(bytes_each: int) -> int:
    """How many of such a size the available memory takes."""
    return int(MEMORY_SHARE * available_memory() / max(1, bytes_each))
