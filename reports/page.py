"""The static leaderboard `index.html`: the wide table, the pictures, and where they come from."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from qbench.files.atomic import write_text
from qbench.records import Record, TaskSpec
from qbench.reports.axes import COLOURS, INK, MUTED, PAPER, RULE
from qbench.reports.headline import MINI_NOTICE, Headline, headlines, ordered, require, unquantized
from qbench.reports.plots import leading, models, quality_figure, svg
from qbench.reports.tables import CAPTION, doubts, failures, grid

TEMPLATE = Path(__file__).with_name("page.html")
# The colours of a picture, and the page's variables that take their place, light or dark.
INKS = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"}
INKS |= {colour: f"c{colour[1:]}" for colour in COLOURS}


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """`index.html`, the page."""
    return [write_text(folder / "index.html", html(records))]


def html(records: Sequence[Record]) -> str:
    """The page as one text; pictures, style and script are in it, and it asks for nothing else."""
    require(records)
    columns, rows = grid(records)
    headings = {headline.title: headline.heading for headline in headlines(records)}
    tasks = _specs(records)
    has_mini_tasks = any(spec.name.startswith("mini-") for spec in tasks)
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        models=models(records),
        colours=[(light[1:], dark[1:]) for light, dark in COLOURS.items()],
        lead=_lead(records),
        mini=MINI_NOTICE if has_mini_tasks else "",
        pictures=[_pictures(records, model, k) for k, model in enumerate(models(records))],
        caption=CAPTION,
        columns=[headings.get(column, column) for column in columns],
        rows=rows,
        words=columns.index("method") + 1,
        failures=_failures(records),
        doubts=[(_label(record), reason) for record, reason in doubts(records)],
        protocols=_protocols(records),
        environment=_environment(records),
        commands=_commands(records),
    )


def _label(record: Record) -> str:
    return f"{record.cell.model} {record.cell.label}"


def _lead(records: Sequence[Record]) -> str:
    """One sentence: how many cells of which models, by which methods, on which data and machine."""
    cells = "cell" if len(records) == 1 else "cells"
    subject = f"{len(records)} {cells} of {', '.join(models(records))}"
    lost = sum(record.status != "ok" for record in records)
    if lost:
        subject += f" ({lost} without scores)"
    parts = [subject]

    methods = dict.fromkeys(
        record.cell.method for record in ordered(records) if not unquantized(record)
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


def _specs(records: Sequence[Record]) -> list[TaskSpec]:
    """The tasks of all cells as they were asked, each once, in order."""
    return list(dict.fromkeys(spec for record in ordered(records) for spec in record.cell.tasks))


def _data(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(name, sha256) of the data of all tasks, and then of all calibrations, each once."""
    data = [(spec.data, spec.sha256) for spec in _specs(records)]
    for record in ordered(records):
        calibration = record.cell.calibration
        if calibration:
            data.append((calibration.data, calibration.sha256))
    return list(dict.fromkeys(data))


def _pictures(records: Sequence[Record], model: str, index: int) -> dict[str, Any]:
    """The pictures of one model: those that people look at first, and all others."""
    mine = [record for record in records if record.cell.model == model]
    leaders = leading(mine)
    pictures = {}
    for k, headline in enumerate(headlines(mine)):
        pictures[headline] = _picture(records, headline, model, f"p{index}-{k}-")
    return {
        "name": model,
        "first": [pictures[headline] for headline in leaders],
        "more": [pictures[headline] for headline in pictures if headline not in leaders],
    }


def _picture(
    records: Sequence[Record], headline: Headline, model: str, prefix: str
) -> dict[str, Any]:
    """The figure as inline SVG whose colours follow the page's.

    prefix: of the names of its parts, which must differ between the pictures of one page.
    """
    figure = quality_figure(
        records, headline.task, headline.metric, filter=headline.filter, model=model
    )
    text = svg(figure, prefix, "cells")
    for colour, name in INKS.items():
        text = text.replace(f": {colour}", f": var(--{name})")
    title = f"{headline.title} of {model} against measured bits per weight"
    return {"title": title, "svg": Markup(text)}


def _failures(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(cell, reason)."""
    return [(f"{_label(record)} ({record.status})", reason) for record, reason in failures(records)]


def _commands(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(cell, the command that runs it again)."""
    return [
        (f"{_label(record)}, cell {record.id}", record.command or "not recorded")
        for record in ordered(records)
    ]


def _protocols(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(task, how it was asked), and the calibrations."""
    rows = [(spec.name, _protocol(spec)) for spec in _specs(records)]
    calibrations = dict.fromkeys(record.cell.calibration for record in ordered(records))
    for calibration in calibrations:
        if calibration:
            text = (
                f"{calibration.samples} windows of {calibration.length} tokens of "
                f"{calibration.data}, sha256 {calibration.sha256[:12]}"
            )
            rows.append(("calibration", text))
    return rows


def _protocol(spec: TaskSpec) -> str:
    parts = [spec.data, f"sha256 {spec.sha256[:12]}"]
    if spec.length is not None:
        parts.append(f"windows of {spec.length} tokens")
    if spec.num_fewshot is not None:
        parts.append(f"{spec.num_fewshot}-shot")
    if spec.limit is not None:
        parts.append(f"the first {spec.limit}")
    if spec.generate is not None:
        parts.append(f"{spec.generate} generated")
    return ", ".join(parts)


def _environment(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Each recorded fact once; where cells differ, every value with how many cells have it."""
    cells_by_value: dict[str, Counter[str]] = {}
    for record in ordered(records):
        for key, value in _flat(record.environment).items():
            cells_by_value.setdefault(key, Counter())[value] += 1
    rows = []
    for key, counts in cells_by_value.items():
        values = list(counts)
        if len(values) > 1:
            values = [f"{value} ({count} cells)" for value, count in counts.items()]
        rows.append((key, "; ".join(values)))
    return rows


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts with dotted names: `packages.torch`."""
    result: dict[str, str] = {}
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result |= _flat(value, f"{name}.")
        else:
            result[name] = _text(value)
    return result


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
