"""The static leaderboard: `leaderboard.md`, `leaderboard.csv`, `quality.png` and a self-contained `index.html`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from qbench.files.atomic import write_text
from qbench.records import Record, TaskSpec
from qbench.reports.axes import COLOURS, INK, MUTED, PAPER, RULE
from qbench.reports.headline import MINI_NOTICE, Headline, headlines, ordered, require, unquantized
from qbench.reports.plots import leading, models, quality_figure, svg, write_quality
from qbench.reports.tables import CAPTION, failures, grid, long_table, markdown

TEMPLATE = Path(__file__).with_name("page.html")
INKS = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"} | {
    colour: f"c{colour[1:]}" for colour in COLOURS
}


def write_report(records: Sequence[Record], folder: Path) -> list[Path]:
    """Writes the four files (a picture more for every further model), each whole or not at all."""
    require(records)
    folder = Path(folder)
    return [
        write_text(folder / "leaderboard.md", markdown(records)),
        write_text(
            folder / "leaderboard.csv", long_table(records).to_csv(index=False, lineterminator="\n")
        ),
        *(
            write_quality(records, folder, model, first=k == 0)
            for k, model in enumerate(models(records))
        ),
        write_text(folder / "index.html", html(records)),
    ]


def html(records: Sequence[Record]) -> str:
    """The whole page as one text: pictures, style and script are in it, and it asks for nothing else."""
    require(records)
    found = headlines(records)
    columns, rows = grid(records)
    arrows = {headline.title: headline.heading for headline in found}
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        models=models(records),
        colours=[(light[1:], dark[1:]) for light, dark in COLOURS.items()],
        lead=_lead(records),
        mini=MINI_NOTICE
        if any(spec.name.startswith("mini-") for r in records for spec in r.cell.tasks)
        else "",
        pictures=_pictures(records),
        caption=CAPTION,
        columns=[arrows.get(column, column) for column in columns],
        rows=rows,
        words=columns.index("method") + 1,
        failures=[(f"{_label(r)} ({r.status})", reason) for r, reason in failures(records)],
        protocols=_protocols(records),
        environment=_environment(records),
        commands=[
            (f"{_label(r)}, cell {r.id}", r.command or "not recorded") for r in ordered(records)
        ],
    )


def _label(record: Record) -> str:
    return f"{record.cell.model} {record.cell.label}"


def _lead(records: Sequence[Record]) -> str:
    lost = sum(record.status != "ok" for record in records)
    methods = list(dict.fromkeys(r.cell.method for r in ordered(records) if not unquantized(r)))
    data = [(spec.data, spec.sha256) for record in ordered(records) for spec in record.cell.tasks]
    data += [(c.data, c.sha256) for record in ordered(records) if (c := record.cell.calibration)]
    hardware = dict.fromkeys(
        _text(r.environment["hardware"]) for r in records if r.environment.get("hardware")
    )
    parts = [f"{len(records)} cell{'s' * (len(records) != 1)} of {', '.join(models(records))}"]
    parts[0] += f" ({lost} without scores)" if lost else ""
    parts += [f"methods: {', '.join(methods)}"] if methods else []
    parts += (
        [f"data (sha256): {', '.join(f'{n} ({d[:8]})' for n, d in dict.fromkeys(data))}"]
        if data
        else []
    )
    parts += [f"hardware: {' | '.join(hardware)}"] if hardware else []
    return "; ".join(parts) + "."


def _pictures(records: Sequence[Record]) -> list[dict[str, Any]]:
    result = []
    for i, model in enumerate(models(records)):
        mine = [record for record in records if record.cell.model == model]
        found, first = headlines(mine), leading(mine)
        drawn = {h: _picture(records, h, model, f"p{i}-{k}-") for k, h in enumerate(found)}
        more = [drawn[h] for h in found if h not in first]
        result.append({"name": model, "first": [drawn[h] for h in first], "more": more})
    return result


def _picture(
    records: Sequence[Record], headline: Headline, model: str, prefix: str
) -> dict[str, Any]:
    """The figure as inline SVG whose colours follow the page's, with names of its own for its parts."""
    text = svg(
        quality_figure(records, headline.task, headline.metric, filter=headline.filter, model=model)
    )
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    for colour, name in INKS.items():
        text = text.replace(f": {colour}", f": var(--{name})")
    title = f"{headline.title} of {model} against measured bits per weight"
    return {"title": title, "svg": Markup(text)}


def _protocols(records: Sequence[Record]) -> list[tuple[str, str]]:
    specs = dict.fromkeys(spec for record in ordered(records) for spec in record.cell.tasks)
    rows = [(spec.name, _protocol(spec)) for spec in specs]
    calibrations = dict.fromkeys(c for record in ordered(records) if (c := record.cell.calibration))
    rows += [
        (
            "calibration",
            f"{c.samples} windows of {c.length} tokens of {c.data}, sha256 {c.sha256[:12]}",
        )
        for c in calibrations
    ]
    return rows


def _protocol(spec: TaskSpec) -> str:
    parts = [
        f"{spec.data}, sha256 {spec.sha256[:12]}",
        f"windows of {spec.length} tokens" if spec.length is not None else "",
        f"{spec.num_fewshot}-shot" if spec.num_fewshot is not None else "",
        f"the first {spec.limit}" if spec.limit is not None else "",
        f"{spec.generate} generated" if spec.generate is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _environment(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Each recorded fact once; where cells differ, every value with how many cells have it."""
    seen: dict[str, dict[str, int]] = {}
    for record in ordered(records):
        for key, value in _flat(record.environment).items():
            counts = seen.setdefault(key, {})
            counts[value] = counts.get(value, 0) + 1
    return [
        (
            key,
            next(iter(v))
            if len(v) == 1
            else "; ".join(f"{text} ({n} cells)" for text, n in v.items()),
        )
        for key, v in seen.items()
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    result: dict[str, str] = {}
    for key, item in value.items():
        result |= (
            _flat(item, f"{prefix}{key}.")
            if isinstance(item, Mapping)
            else {f"{prefix}{key}": _text(item)}
        )
    return result


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
