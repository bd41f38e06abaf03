"""From what is known of a cell to its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from qbench import shared_library
from qbench.environment import environment
from qbench.experiment.cells import cell_command
from qbench.experiment.plan import Plan
from qbench.method_source import module_file
from qbench.records import Cell, Record


def machine_of(plan: Plan) -> dict[str, Any]:
    """This machine, with the threads that a cell of the plan has, and in what methods loop."""
    machine = environment()
    if "hardware" in machine:
        machine["hardware"]["threads"] = plan.threads
    return machine | {"loops": _loops()}


def _loops() -> str:
    """In what the innermost loops of methods are computed on a processor: `C` or `torch`."""
    module = module_file("qbench.methods.native.loops")
    library = None if module is None else shared_library.built(module.parent, ("_loops",))
    return "C" if shared_library.why_not(library) is None else "torch"


def record_of(
    plan: Plan,
    machine: Mapping[str, Any],
    cell: Cell,
    status: Literal["ok", "failed", "skipped"],
    reason: str | None,
    facts: Mapping[str, Any] | None = None,
    tokens: Mapping[str, Any] | None = None,
) -> Record:
    """The record of a cell. facts: fields of it. tokens: what calibrated."""
    of_run = {
        "data": plan.source.label,
        "seed": cell.seed,
        "device": plan.device,
        "data_warning": plan.warning,
        "protocol": plan.protocol["hash"],
    }
    return Record(
        id=cell.id,
        cell=cell,
        status=status,
        reason=reason,
        environment={**machine, **of_run, **(tokens or {})},
        command=cell_command(plan.grid, cell),
        judging=plan.judging,
        protocol=plan.protocol,
        **(facts or {}),
    )
