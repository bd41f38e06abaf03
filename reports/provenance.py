"""Where results come from: data, protocols, machines and commands, as rows for a page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qbench.comparison.pairs import is_unquantized
from qbench.records import Record, TaskSpec
from qbench.reports.cell_names import ordered
from qbench.reports.headline import in_words
from qbench.reports.plots import models
from qbench.reports.tables import failures


def label(record: Record) -> str:
    """A cell in words: its model, method, scheme and parameters."""
    return f"{record.cell.model} {record.cell.label}"


def lead(records: Sequence[Record]) -> str:
    """One sentence: how many cells of which models, by which methods, on which data and machine."""
    cells = "cell" if len(records) == 1 else "cells"
    subject = f"{len(records)} {cells} of {', '.join(models(records))}"
    lost = sum(record.status != "ok" for record in records)
    if lost:
        subject += f" ({lost} without scores)"
    parts = [subject]

    methods = dict.fromkeys(
        record.cell.method for record in ordered(records) if not is_unquantized(record)
    )
    if methods:
        parts.append(f"methods: {', '.join(methods)}")

    digests = [f"{data} ({sha256[:8]})" for data, sha256 in _data(records)]
    if digests:
        parts.append(f"data (sha256): {', '.join(digests)}")

    machines = [record.environment.get("hardware") for record in records]
    hardware = dict.fromkeys(_text(machine) for machine in machines if machine)
    if hardware:
        parts.append(f"hardware: {' | '.join(hardware)}")
    return "; ".join(parts) + "."


def specs(records: Sequence[Record]) -> list[TaskSpec]:
    """The tasks of all cells as they were asked, each once, in order."""
    return list(dict.fromkeys(spec for record in ordered(records) for spec in record.cell.tasks))


def _data(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(name, sha256) of the data of all tasks, and then of all calibrations, each once."""
    data = [(spec.data, spec.sha256) for spec in specs(records)]
    for record in ordered(records):
        calibration = record.cell.calibration
        if calibration:
            data.append((calibration.data, calibration.sha256))
    return list(dict.fromkeys(data))


def reasons(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(cell, reason)."""
    return [(f"{label(record)} ({record.status})", reason) for record, reason in failures(records)]


def protocols(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(task, how it was asked), and the calibrations."""
    rows = [(spec.name, f"{in_words(spec)}, sha256 {spec.sha256[:12]}") for spec in specs(records)]
    calibrations = dict.fromkeys(record.cell.calibration for record in ordered(records))
    for calibration in calibrations:
        if calibration:
            text = (
                f"{calibration.samples} windows of {calibration.length} tokens of "
                f"{calibration.data}, sha256 {calibration.sha256[:12]}"
            )
            rows.append(("calibration", text))
    return rows


def environment(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Each recorded fact once; where cells differ, every value with how many cells have it."""
    cells_by_value: dict[str, Counter[str]] = {}
    for record in ordered(records):
        for key, value in flat(record.environment).items():
            cells_by_value.setdefault(key, Counter())[value] += 1
    rows = []
    for key, counts in cells_by_value.items():
        values = list(counts)
        if len(values) > 1:
            values = [f"{value} ({count} cells)" for value, count in counts.items()]
        rows.append((key, "; ".join(values)))
    return rows


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts with dotted names: `packages.torch`."""
    result: dict[str, str] = {}
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result |= flat(value, f"{name}.")
        else:
            result[name] = _text(value)
    return result


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
