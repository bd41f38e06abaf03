"""What of a grid can be refused before any work, by its names and numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.contracts import check_scheme
from qbench.environment import require_device_name
from qbench.errors import ConfigError, unknown_name
from qbench.experiment.grid import CALIBRATION, Grid
from qbench.registry import check_parameter, declared


def check_schemes(grid: Grid, methods: Sequence[str]) -> None:
    """ConfigError where none of these methods supports any of the bits that are asked for.

    Where one of them does, the others are skipped.
    """
    refusals = []
    for method in methods:
        declaration = declared(method)
        for scheme in grid.schemes(method):
            try:
                if scheme is not None:
                    check_scheme(declaration, scheme)
                    return
            except ConfigError as error:
                refusals.append(error)
    if refusals:
        raise refusals[0]


def check_owners(grid: Grid, methods: Sequence[str], calibrates: bool = True) -> None:
    """ConfigError where `set` names what is neither one of these methods nor a task.

    calibrates: whether the calibration may be set.
    """
    owners = (*dict.fromkeys(methods), *grid.task_names, *[CALIBRATION] * calibrates)
    for owner in grid.set:
        if owner not in owners:
            raise ConfigError(unknown_name("name in --set", owner, owners))


def check_request(grid: Grid, loaded: bool = False) -> None:
    """ConfigError where a name or a number can be refused before torch is imported.

    DataError where there is no such data. The declarations of methods are read without an
    import. The plan checks the rest: values of parameters, models, what the data contain, and
    everything about a grid with plug-ins, unless these are `loaded` already.
    """
    from qbench.tasks.data import require_data
    from qbench.tasks.registry import get_task

    _check_lists(grid)
    require_device_name(grid.device)
    require_data(grid.data)
    _ = grid.calibrations, grid.seeds(draws=True)
    if grid.plugin and not loaded:
        return
    entries = grid.entries()
    check_owners(grid, [method for method, _ in entries])
    for method, fixed in entries:
        declaration = declared(method)
        for key in grid.values_of(method, fixed):
            check_parameter(method, key, declaration.parameters)
    check_schemes(grid, [method for method, _ in entries])
    for task in grid.task_names:
        get_task(task)
        grid.task_options(task)


def _check_lists(grid: Grid) -> None:
    """ConfigError for an empty list, and for bits and the like where nothing is quantized."""
    for key in ("model", "bits", "methods", "tasks"):
        if getattr(grid, key) == ():
            raise ConfigError(f"{key} is an empty list; name at least one, or leave it out")
    if {method for method, _ in grid.entries()} - {"none"}:
        return
    for key in ("bits", "group_size", "symmetric", "layers", "head_bits"):
        if key in grid.model_fields_set and getattr(grid, key):
            flag = key.replace("_", "-")
            raise ConfigError(
                f"--{flag} means nothing to the method 'none', which is the unquantized "
                "model; leave it out, or name a method that quantizes"
            )
