"""What the process of a cell is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbench.experiment.estimate import Estimate
from qbench.models.source import ModelSource
from qbench.records import Cell


@dataclass(frozen=True)
class Job:
    """All that the process of a cell is told.

    model: where the cell's model is. data: of which source. task_names: what the user calls a task,
    by its name in the cell. batch_size: items at a time, for tasks without one of their own.
    plugins: the files that this cell needs. threads: of the processor, which other cells share.
    folder: of the run. place: the working directory. overlaps: by task's own name, what the
    calibration text holds of it. memory: bytes that the cell may take, None for what there is. gpu:
    the one that it has for itself, as CUDA_VISIBLE_DEVICES names it. halvings: of the batches,
    since memory ran out.
    """

    cell: Cell
    model: ModelSource
    data: str
    task_names: dict[str, str]
    batch_size: int
    plugins: tuple[Path, ...]
    device: str
    threads: int
    estimate: Estimate
    folder: Path
    place: Path
    overlaps: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: int | None = None
    gpu: str | None = None
    halvings: int = 0
