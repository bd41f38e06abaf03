"""From a grid to a plan: everything resolved, checked and priced before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from qbench.contracts import Scheme
from qbench.environment import pick_device
from qbench.errors import ConfigError, reason_of
from qbench.experiment.cells import expand
from qbench.experiment.estimate import (
    CELL_SECONDS,
    LATENCY_SECONDS,
    Estimate,
    estimate,
    measure_rates,
)
from qbench.experiment.grid import Grid, preset_for
from qbench.experiment.identity import identify
from qbench.experiment.plugins import load_plugins
from qbench.experiment.protocols import protocol_of, require_versions
from qbench.experiment.selection import select
from qbench.experiment.workers import share_machine
from qbench.models.identity import Announce
from qbench.models.loading import load_skeleton
from qbench.models.source import BUILT_IN, ModelSource, find_model, is_here
from qbench.quantization import check_layers
from qbench.records import Cell
from qbench.registry import declared, method_class
from qbench.tasks.contract import Task
from qbench.tasks.data import CALIBRATION, Source, choose, chosen, open_source
from qbench.tasks.declaration import Declaration
from qbench.tasks.registry import get_task

UNKNOWN = Estimate(0.0, {}, 0)
HALF = 2  # bytes of a parameter where a config does not say
SHORT = 0.25  # of the longest quantizing: cells below it are begun before the long ones


@dataclass
class Plan:
    """All that is fixed before any work.

    sources: where each model is, by its name in the grid. source: of the data. tasks: by their
    names in the cells' specs. estimates: by the cell's id. skipped: why a cell is not run, by its
    id. jobs: cells at a time. threads: of the processor, for each of them. gpus: in turns, for one
    of them each; none where all see what this process sees. model_bytes: of the largest model's
    weights. warning: about the data.
    downloads: bytes of weights that are to come from the hub, by the model's name. protocol: how
    the run judges (`qbench.experiment.protocols`).
    """

    grid: Grid
    cells: tuple[Cell, ...]
    sources: dict[str, ModelSource]
    source: Source
    tasks: dict[str, Task]
    device: str
    estimates: dict[str, Estimate] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    jobs: int = 1
    threads: int = 1
    gpus: tuple[str, ...] = ()
    model_bytes: int = 0
    warning: str | None = None
    downloads: dict[str, int] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)


def make_plan(grid: Grid, announce: Announce = lambda text: None) -> Plan:
    """Resolve models, data and tasks, and check every cell, before any work.

    announce: is told what takes over a second. A scheme that a method or a model does not support
    is skipped with its reason. Raises ConfigError, ModelError or DataError, also where no quantized
    cell is left.
    """
    device = pick_device(grid.device)
    load_plugins(grid.plugin)
    embedded = all(name in BUILT_IN for name in grid.model)
    asked = [get_task(name) for name in grid.task_names]
    # A task of somebody else's may bring its own data.
    tables = [task.table_name for task in asked if isinstance(task, Declaration)]
    choice = choose(grid.data, embedded, (CALIBRATION, *tables))
    source = open_source(grid.data if chosen(grid.data) == choice.data else choice.data)
    preset = grid.preset or preset_for(device, choice.data != "mini")
    # The command in a record names what was chosen.
    grid = grid.model_copy(update={"data": choice.data, "preset": preset})
    require_versions(grid)
    for name in grid.method_names:
        method_class(name)  # refuses an unknown one
    models = {name: find_model(name, grid.trust_remote_code) for name in grid.model}
    identity, tasks = identify(grid, models, source, device, announce)
    cells = select(grid, expand(grid, identity))
    _refuse_quantized(grid, identity.stored_as, cells)
    plan = Plan(grid, cells, models, source, tasks, device, warning=choice.warning)
    plan.protocol = protocol_of(grid, identity, tasks)
    _check_and_estimate(plan)
    share_machine(plan)
    return plan


def working_order(plan: Plan) -> list[Cell]:
    """The cells as they are begun: as planned, or where several are at work, those first that are
    soon quantized, for early scores, and then the longest ones, so that all end together.
    """
    if plan.jobs == 1:
        return list(plan.cells)
    short = SHORT * max(estimate.quantize for estimate in plan.estimates.values())
    early = [cell for cell in plan.cells if plan.estimates[cell.id].quantize < short]
    late = [cell for cell in plan.cells if plan.estimates[cell.id].quantize >= short]
    return early + sorted(late, key=lambda cell: -plan.estimates[cell.id].seconds)


def stored_bytes(skeleton: Any) -> int:
    """Of a model's weights as they are published, in the dtype that its config states."""
    stated = getattr(skeleton.config, "dtype", None)
    itemsize = stated.itemsize if isinstance(stated, torch.dtype) else HALF
    return itemsize * sum(parameter.numel() for parameter in skeleton.parameters())


def _refuse_quantized(
    grid: Grid, stored_as: Mapping[str, str | None], cells: Sequence[Cell]
) -> None:
    """ConfigError where a model that is quantized already would be quantized again, unasked."""
    for cell in cells:
        if cell.scheme is not None and stored_as[cell.model] and not grid.requantize:
            raise ConfigError(
                f"model {cell.model!r} is quantized already ({stored_as[cell.model]}); evaluate it "
                "with --methods none, or give --requantize to round its rounded weights once more"
            )


def _check_and_estimate(plan: Plan) -> None:
    """Skip what does not fit a method or a model, and fill in what every other cell will cost."""
    skeletons = {name: load_skeleton(model) for name, model in plan.sources.items()}
    rates = {}
    for name, skeleton in skeletons.items():
        weights = stored_bytes(skeleton)
        plan.model_bytes = max(plan.model_bytes, weights)
        if not is_here(plan.sources[name]):
            plan.downloads[name] = weights
        rates[name] = measure_rates(skeleton, plan.device, plan.cells[0].dtype)
    costs = {name: task.cost for name, task in plan.tasks.items()}
    misfits: dict[tuple[str, str, Scheme | None], str | None] = {}
    for cell in plan.cells:
        kind = cell.model, cell.method, cell.scheme
        if kind not in misfits:
            misfits[kind] = _misfit(skeletons[cell.model], cell)
        reason = misfits[kind]
        if reason is None:
            try:
                plan.estimates[cell.id] = estimate(cell, rates[cell.model], costs)
                continue
            except Exception as error:  # of a plug-in's constructor, it may be any
                reason = reason_of(error)
        plan.skipped[cell.id] = reason
        plan.estimates[cell.id] = UNKNOWN
    if plan.grid.with_latency:
        _add_latencies(plan)
    quantized = [cell.id for cell in plan.cells if cell.scheme is not None]
    if quantized and all(name in plan.skipped for name in quantized):
        raise ConfigError(plan.skipped[quantized[0]])


def _add_latencies(plan: Plan) -> None:
    """Price the latencies: cells of one model, format and scheme share what is measured."""
    seen = set()
    for cell in plan.cells:
        if cell.scheme is None or cell.id in plan.skipped:
            continue
        shared = (cell.model, declared(cell.method).format, cell.scheme)
        seconds = CELL_SECONDS if shared in seen else LATENCY_SECONDS
        seen.add(shared)
        plan.estimates[cell.id] = replace(plan.estimates[cell.id], latency=seconds)


def _misfit(skeleton: Any, cell: Cell) -> str | None:
    """Why a cell's scheme does not fit its method or model; None where it does.

    It is the same for all parameters of the method.
    """
    if cell.scheme is None:
        return None
    try:
        check_layers(skeleton, method_class(cell.method), cell.scheme)
    except Exception as error:  # of a plug-in, it may be any
        return reason_of(error)
    return None
