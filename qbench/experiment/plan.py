"""From a grid to a plan: everything is resolved, checked and estimated before any work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from qbench.contracts import Scheme
from qbench.environment import hardware, named_device, pick_device
from qbench.errors import ConfigError, reason_of
from qbench.experiment.cells import expand, left_out, repeated
from qbench.experiment.data_choice import choose_data, tables_of
from qbench.experiment.estimate import (
    KNOWN_SECONDS,
    LATENCY_LOADS,
    LATENCY_SECONDS,
    Estimate,
    estimate,
    measure_rates,
    stored_parameters,
)
from qbench.experiment.foreign_cell import require_environment
from qbench.experiment.grid import Grid
from qbench.experiment.identity import identify
from qbench.experiment.plugins import load_plugins
from qbench.experiment.presets import preset_for
from qbench.experiment.protocols import protocol_of, require_versions
from qbench.experiment.selection import select
from qbench.experiment.timings import Timings, corrected, kind_of, makespan
from qbench.experiment.workers import share_machine
from qbench.models.identity import Announce
from qbench.models.loading import load_skeleton, with_config
from qbench.models.source import ModelSource, find_model, is_here
from qbench.quantization import check_layers, refuse_own_code
from qbench.records import Cell, Judging, labels
from qbench.registry import declared, get_method, method_class
from qbench.tasks.contract import Task
from qbench.tasks.data import CALIBRATION, Source
from qbench.tasks.registry import get_task

UNKNOWN = Estimate(0.0, {}, 0)
HALF = 2  # bytes of a parameter where a config does not say
SHORT = 0.25  # of the time of the slowest method: faster cells are begun before slower ones


@dataclass
class Plan:
    """All that is fixed before any work.

    sources: where each model is, by its name in the grid.
    source: of the data.
    tasks: by their names in the cells' specs.
    declared: what these are (`task_hash`), by the same names.
    judging: which code judges, for the records.
    modelled: what the cost model says of each cell, by its id.
    estimates: the same, corrected by what earlier runs took.
    timings: of earlier runs, by the model's name.
    skipped: why a cell is not run, by its id.
    jobs: cells at a time.
    threads: of the processor, for each of these.
    gpus: one for each cell at work, in turns; empty where all cells see the same devices as this
        process.
    model_bytes: bytes of the largest model's weights.
    warning: about the data.
    downloads: bytes of the weights that are not here but on the hub, by the model's name.
    protocol: how the run judges (`qbench.experiment.protocols`).
    labels: of all cells of the grid, by id.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    sources: dict[str, ModelSource]
    source: Source
    tasks: dict[str, Task]
    device: str
    declared: Mapping[str, str] = field(default_factory=dict)
    judging: Judging | None = None
    estimates: dict[str, Estimate] = field(default_factory=dict)
    modelled: dict[str, Estimate] = field(default_factory=dict)
    timings: dict[str, Timings] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    jobs: int = 1
    threads: int = 1
    gpus: tuple[str, ...] = ()
    model_bytes: int = 0
    warning: str | None = None
    downloads: dict[str, int] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


def make_plan(
    grid: Grid,
    announce: Announce = lambda text: None,
    *,
    dry_run: bool = False,
    elsewhere: bool = False,
) -> Plan:
    """Resolve models, data and tasks, and check every cell, before any work.

    announce: is called with a sentence before anything that takes over a second. dry_run: whether
    the plan is only shown; then built-in configs serve for known models that the hub does not give.
    elsewhere: whether the cells run on other machines, so that this one need not have the device. A
    cell whose scheme its method or model does not support is skipped with the reason. ConfigError,
    ModelError or DataError where something cannot be resolved, or where no quantized cell is left.
    """
    device = named_device(grid.device) if elsewhere else pick_device(grid.device)
    load_plugins(grid.plugin)
    tables = tables_of([get_task(name) for name in grid.task_names])
    choice = choose_data(grid.data, grid.model, (CALIBRATION, *tables))
    preset = grid.preset or preset_for(device, choice.data != "mini")
    # The command in a record names what was chosen.
    grid = grid.model_copy(update={"data": choice.data, "preset": preset})
    require_versions(grid)
    for name in grid.method_names:
        method_class(name)  # refuses an unknown one
    models = each_model_once([find_model(name, grid.trust_remote_code) for name in grid.model])
    grid = grid.model_copy(update={"model": tuple(models)})
    if dry_run:
        models = {name: with_config(model, announce) for name, model in models.items()}
    identity, tasks = identify(grid, models, choice.source, device, announce)
    whole = expand(grid, identity)
    for sentence in repeated(grid):
        announce(sentence)
    cells = select(grid, whole)
    _refuse_quantized(grid, cells)
    for cell in cells:
        if cell.tasks and cell.tasks != identity.tasks:
            announce(left_out(cell, identity.comparing))
    plan = Plan(grid, cells, models, choice.source, tasks, device, warning=choice.warning)
    plan.declared = identity.declared
    plan.judging = identity.judging
    plan.protocol = protocol_of(grid, identity, tasks)
    plan.labels = labels(whole)
    _check_and_estimate(plan)
    return plan


def each_model_once(models: Sequence[ModelSource]) -> dict[str, ModelSource]:
    """The models by their names; one that is asked for by several keeps the first."""
    by_place: dict[tuple[str, str | None], ModelSource] = {}
    for model in models:
        by_place.setdefault(model.place, model)
    return {model.name: model for model in by_place.values()}


def working_order(plan: Plan) -> list[Cell]:
    """The cells in the order in which they are begun.

    Those that are quantized quickly are first, so that there are scores early. Of the others the
    shortest is next; or the longest, where several are at work, so that all end together.
    """
    short = SHORT * max(estimate.quantize for estimate in plan.estimates.values())
    early = [cell for cell in plan.cells if plan.estimates[cell.id].quantize < short]
    late = [cell for cell in plan.cells if plan.estimates[cell.id].quantize >= short]
    late.sort(key=lambda cell: plan.estimates[cell.id].seconds, reverse=plan.jobs > 1)
    return early + late


def expected_seconds(plan: Plan, done: Collection[str] = ()) -> float:
    """Seconds that all cells will take together, without those that are done and latencies."""
    left = [cell.id for cell in working_order(plan) if cell.id not in done]
    return makespan([plan.estimates[name].seconds for name in left], plan.jobs)


def stored_bytes(skeleton: Any) -> int:
    """Bytes of a model's weights as they are published, in the dtype that its config states."""
    stated = getattr(skeleton.config, "dtype", None)
    itemsize = stated.itemsize if isinstance(stated, torch.dtype) else HALF
    return itemsize * stored_parameters(skeleton)


def _refuse_quantized(grid: Grid, cells: Sequence[Cell]) -> None:
    """ConfigError where a model that is quantized already would be quantized again, unasked."""
    for cell in cells:
        if cell.scheme is not None and cell.stored_as and not grid.requantize:
            raise ConfigError(
                f"model {cell.model!r} is quantized already ({cell.stored_as}); evaluate it "
                "with --methods none, or give --requantize to round its rounded weights once more"
            )


def _check_and_estimate(plan: Plan) -> None:
    """Skip cells that do not fit their method or model, and estimate the costs of all others."""
    skeletons = {name: load_skeleton(model) for name, model in plan.sources.items()}
    for name in dict.fromkeys(cell.model for cell in plan.cells if cell.scheme is not None):
        refuse_own_code(skeletons[name])
    for name, skeleton in skeletons.items():
        weights = stored_bytes(skeleton)
        plan.model_bytes = max(plan.model_bytes, weights)
        if not is_here(plan.sources[name]):
            plan.downloads[name] = weights
    misfits: dict[tuple[str, str, Scheme | None], str | None] = {}
    for cell in plan.cells:
        kind = cell.model, cell.method, cell.scheme
        if kind not in misfits:
            misfits[kind] = _misfit(skeletons[cell.model], cell)
        reason = misfits[kind] or _refused(cell)
        if not cell.tasks:
            reason = left_out(cell, list(plan.tasks))
        if reason is not None:
            plan.skipped[cell.id] = reason
    _model_costs(plan, skeletons)  # at one thread; the memory says how many cells are at work
    quantized = [cell.id for cell in plan.cells if cell.scheme is not None]
    names = quantized or [cell.id for cell in plan.cells]
    if all(name in plan.skipped for name in names):
        raise ConfigError(plan.skipped[names[0]])
    share_machine(plan)
    _open_timings(plan, skeletons)
    _model_costs(plan, skeletons)
    for cell in plan.cells:
        if cell.id not in plan.skipped:
            modelled = plan.modelled[cell.id]
            plan.estimates[cell.id] = corrected(cell, modelled, plan.timings[cell.model])


def _open_timings(plan: Plan, skeletons: Mapping[str, Any]) -> None:
    """Read how long runs like this one took."""
    machine = hardware()
    dtype = plan.cells[0].dtype
    for name, skeleton in skeletons.items():
        size = sum(parameter.numel() for parameter in skeleton.parameters())
        kind = kind_of(machine, plan.device, dtype, plan.jobs, plan.threads, size)
        plan.timings[name] = Timings.open(kind)


def _model_costs(plan: Plan, skeletons: Mapping[str, Any]) -> None:
    """Estimate every cell by the cost model, at the plan's threads."""
    rates = {}
    for name, skeleton in skeletons.items():
        measured = measure_rates(skeleton, plan.device, plan.cells[0].dtype, plan.threads)
        known = plan.timings.get(name)
        rates[name] = known.fastest(measured) if known else measured
    costs = {name: task.cost for name, task in plan.tasks.items()}
    for cell in plan.cells:
        plan.modelled[cell.id] = UNKNOWN
        if cell.id in plan.skipped:
            continue
        try:
            plan.modelled[cell.id] = estimate(cell, rates[cell.model], costs)
        except Exception as error:  # a plug-in says how much it trains
            plan.skipped[cell.id] = reason_of(error)
    plan.estimates = dict(plan.modelled)
    if plan.grid.with_latency:
        add_latencies(plan)
    _add_references(plan)


def _add_references(plan: Plan) -> None:
    """Add what tasks compute of the unquantized model, which the first cell of a model does."""
    seen = set()
    for cell in working_order(plan):
        for spec in cell.tasks:
            key = (cell.model, spec.name)
            if cell.id in plan.skipped or not plan.tasks[spec.name].needs_unquantized:
                continue
            if key not in seen:
                seen.add(key)
                modelled = plan.modelled[cell.id]
                own_pass = modelled.tasks[spec.name] / plan.tasks[spec.name].cost.pass_share
                handling = modelled.handling + own_pass
                plan.modelled[cell.id] = replace(modelled, handling=handling)


def add_latencies(plan: Plan) -> None:
    """Add the latencies; cells of one model, format and scheme share what is measured."""
    seen = set()
    for cell in plan.cells:
        if cell.scheme is None or cell.id in plan.skipped:
            continue
        shared = (cell.model, declared(cell.method).format, cell.scheme)
        modelled = plan.modelled[cell.id]
        seconds = LATENCY_SECONDS + LATENCY_LOADS * modelled.handling
        if shared in seen:
            seconds = KNOWN_SECONDS
        seen.add(shared)
        plan.modelled[cell.id] = replace(modelled, latency=seconds)


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


def _refused(cell: Cell) -> str | None:
    """Why another package does not do a cell with these parameters; None where it does."""
    if cell.scheme is None or not declared(cell.method).external:
        return None
    try:
        get_method(cell.method, **cell.params).worker_settings(cell.scheme)
        require_environment(cell.method)
    except Exception as error:  # a package may be anybody's
        return reason_of(error)
    return None
