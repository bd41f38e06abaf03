"""From what is known of a cell to its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from qbench.environment import environment
from qbench.experiment.cells import cell_command
from qbench.experiment.plan import Plan
from qbench.records import Cell, Record


def machine_of(plan: Plan) -> dict[str, Any]:
    """This machine, with the threads that a cell of the plan has."""
    machine = environment()
    if "hardware" in machine:
        machine["hardware"]["threads"] = plan.threads
    return machine


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
        protocol=plan.protocol,
        **(facts or {}),
    )
