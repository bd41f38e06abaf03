"""The job that the process of a cell gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbench.experiment.estimate import Estimate
from qbench.models.source import ModelSource
from qbench.records import Cell


@dataclass(frozen=True)
class Job:
    """All that the process of a cell needs to know.

    model: where the cell's model is.
    data: as for `open_source`.
    task_names: the name that the user typed for a task, by its name in the cell.
    declared: what the tasks of the plan are (`task_hash`), by their names in the cell.
    batch_size: items at a time, for tasks without one of their own.
    plugins: the files that this cell needs.
    kernels: the files of the run that define kernels, with which its latency is measured.
    threads: of the processor; other cells use the others.
    folder: of the run.
    place: the working directory.
    overlaps: by the task's own name, how much of it the calibration text contains.
    memory: bytes that the cell may take, None for what there is.
    gpu: the one that it has for itself, as CUDA_VISIBLE_DEVICES names it.
    halvings: how often the batches were halved, since memory ran out.
    """

    cell: Cell
    model: ModelSource
    data: str
    task_names: dict[str, str]
    declared: dict[str, str]
    batch_size: int
    plugins: tuple[Path, ...]
    kernels: tuple[Path, ...]
    device: str
    threads: int
    estimate: Estimate
    folder: Path
    place: Path
    overlaps: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: int | None = None
    gpu: str | None = None
    halvings: int = 0
