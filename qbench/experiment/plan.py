"""From a grid to a plan: everything resolved, checked and priced before any work."""

from __future__ import annotations

from dataclasses import dataclass, field

from qbench.environment import pick_device, pick_dtype
from qbench.experiment.cells import expand
from qbench.experiment.estimate import Estimate, estimate, measure_rates
from qbench.experiment.grid import Grid
from qbench.experiment.plugins import load_plugins
from qbench.models.identity import resolved_revision
from qbench.models.loading import load_skeleton
from qbench.models.source import ModelSource, find_model
from qbench.quantization import check_layers
from qbench.records import CalibrationSpec, Cell, TaskSpec
from qbench.registry import get_method, method_class
from qbench.tasks.contract import Task
from qbench.tasks.data import CALIBRATION, Source, chosen, open_source
from qbench.tasks.registry import get_task


@dataclass
class Plan:
    """All that is fixed before any work.

    sources: where each model is, by its name in the grid. source: of the data. tasks: by their
    names in the cells' specs. estimates: by the cell's id.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    sources: dict[str, ModelSource]
    source: Source
    tasks: dict[str, Task]
    device: str
    estimates: dict[str, Estimate] = field(default_factory=dict)


def make_plan(grid: Grid) -> Plan:
    """Resolve models, data and tasks, and check every cell, before any work.

    Raises ConfigError, ModelError or DataError.
    """
    load_plugins(grid.plugin)
    source = open_source(grid.data)
    # The command in a record names the data that `auto` stood for.
    grid = grid.model_copy(update={"data": chosen(grid.data)})
    specs, tasks = _specs(grid, source)
    for name, _ in grid.variants:
        method_class(name)  # refuses an unknown one
    models = {name: find_model(name) for name in grid.model}
    device = pick_device(grid.device)
    cells = expand(
        grid,
        {name: resolved_revision(model) for name, model in models.items()},
        specs,
        _calibration(grid, source, device),
        pick_dtype(grid.dtype, device),
    )
    plan = Plan(grid, cells, models, source, tasks, device)
    _check_and_estimate(plan)
    return plan


def _specs(grid: Grid, source: Source) -> tuple[list[TaskSpec], dict[str, Task]]:
    """What the grid's tasks ask on this data, and the tasks by the names of these specs."""
    specs = []
    tasks = {}
    for name in grid.task_names:
        task = get_task(name)
        spec = task.spec(source, **grid.task_options(task.name))
        specs.append(spec)
        tasks[spec.name] = task
    return specs, tasks


def _calibration(grid: Grid, source: Source, device: str) -> CalibrationSpec:
    return CalibrationSpec(
        data=source.table_name(CALIBRATION),
        sha256=source.sha256(CALIBRATION),
        dtype=pick_dtype("auto", device),
        **grid.calibration,
    )


def _check_and_estimate(plan: Plan) -> None:
    """Refuse schemes that do not fit a model's layers, and fill in what every cell will cost."""
    skeletons = {name: load_skeleton(model) for name, model in plan.sources.items()}
    rates = {}
    for name, skeleton in skeletons.items():
        rates[name] = measure_rates(skeleton, plan.device, plan.cells[0].dtype)
    costs = {name: task.cost for name, task in plan.tasks.items()}
    for cell in plan.cells:
        if cell.scheme is not None:
            check_layers(skeletons[cell.model], get_method(cell.method, **cell.params), cell.scheme)
        plan.estimates[cell.id] = estimate(cell, rates[cell.model], costs)
