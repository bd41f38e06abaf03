"""Cells that run out of memory: how that is noticed, what is tried next, and what is reported."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qbench.checkpoint.paged import can_be_paged
from qbench.contracts import trains
from qbench.environment import allowed_memory, available_memory
from qbench.records import Caution, Cell
from qbench.registry import declared

if TYPE_CHECKING:
    from qbench.experiment.plan import Plan

GB = 1e9
NOTHING = 1  # byte: a model that may take so much is read block by block
WALK_BATCH = 8  # samples that walk together, of `qbench.quantization.quantize`
_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that memory has run out."""
    for cause in _chain(error):
        if isinstance(cause, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(cause, OSError) and cause.errno == errno.ENOMEM:
            return True
        if isinstance(cause, RuntimeError) and any(word in str(cause) for word in _WORDS):
            return True
    return False


def system_kills() -> int:
    """How many processes the system has killed for lack of memory since it started."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def batches(plan: Plan, cell: Cell) -> list[int]:
    """The batch sizes to be tried for a cell: the one asked for, then half of it, and so on.

    The first is the largest of its tasks' and of the calibration's. The batch of a method that
    trains is one of its parameters, and is not changed.
    """
    sizes = [plan.grid.defaults["batch_size"]]
    sizes += [plan.tasks[spec.name].batch_size or 1 for spec in cell.tasks]
    if cell.calibration is not None:
        sizes.append(WALK_BATCH)
    largest = max(sizes)
    return [largest >> step for step in range(largest.bit_length())]


def halved(batch: int, times: int) -> int:
    """A batch size after it was halved so often; at least 1."""
    return max(1, batch >> times)


def is_helped(outcome: Mapping[str, Any], cell: Cell) -> bool:
    """Whether a cell ran out of memory in a phase in which a smaller batch takes less."""
    phase = outcome.get("out_of_memory")
    if phase == "quantize":
        return cell.calibration is not None and not trains(declared(cell.method))
    return phase is not None and phase not in ("load", "save", "read back")


def can_be_offloaded(plan: Plan, cell: Cell) -> bool:
    """Whether a cell's model can be read, quantized and judged block by block."""
    return not declared(cell.method).external and can_be_paged(plan.sources[cell.model])


def present_memory(device: str) -> tuple[int, int]:
    """Bytes that are free, and all that there are, of the GPU or for this process."""
    if device == "cpu":
        return available_memory(), allowed_memory()
    free, total = torch.cuda.mem_get_info(device)
    return free, total


def sizes_in_words(
    plan: Plan, cell: Cell, tried: list[int], memory: tuple[int, int], paged: bool
) -> str:
    """A sentence about the memory that a cell needed, and that there was.

    memory: of `present_memory`, when it ran out. paged: whether it was tried block by block.
    """
    estimated = plan.estimates[cell.id].peak_bytes / GB
    free, total = memory
    where = "memory" if plan.device == "cpu" else "the GPU"
    offloaded = " and one block in memory at a time" if paged else ""
    return (
        f"tried were batches of {', '.join(map(str, tried))}{offloaded}; the largest model has "
        f"{plan.model_bytes / GB:.1f} GB of weights, the cell was estimated to take "
        f"{estimated:.1f} GB, and of {total / GB:.1f} GB of {where} {free / GB:.1f} GB were free; "
        "take a smaller calibration sample, shorter windows, fewer --workers, or a larger machine"
    )


def caution(tried: list[int]) -> Caution:
    """The caution for a cell whose batch was smaller than asked for."""
    text = f"memory ran out with batches of {', '.join(map(str, tried[:-1]))}"
    return Caution(
        kind="memory",
        text=f"{text}; it was judged with {tried[-1]} at a time, which changes the last digits",
    )


def walk_caution(samples: int) -> Caution:
    """The caution for a quantized model that was calibrated with a smaller batch.

    It belongs to the model: all cells that use it get it.
    """
    return Caution(
        kind="memory",
        text=f"its calibration walked {samples} samples at a time and not {WALK_BATCH}, as memory "
        "had run out: a method that looks at a part of the samples, such as awq, took others",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
