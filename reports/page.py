"""The static leaderboard `index.html`: the ranking, the pictures, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from qbench.comparison.pairs import pairs_of
from qbench.files.atomic import write_text
from qbench.outside_text import printable_lines
from qbench.records import Record
from qbench.reports import latencies
from qbench.reports.cautions import summary
from qbench.reports.cell_names import ordered
from qbench.reports.doubts import doubts
from qbench.reports.headline import MINI_NOTICE, require
from qbench.reports.looks import COLOURS, INK, MUTED, PAPER, RULE
from qbench.reports.pictures import file_name, offered
from qbench.reports.plots import headline_figure, leading, models, svg
from qbench.reports.provenance import environment, label, lead, protocols, reasons, specs
from qbench.reports.quoted import NOTICE, by_model
from qbench.reports.ranking import filters, ranking
from qbench.reports.repeats import without_repeats
from qbench.reports.tables import captions

FOLDER = Path(__file__).parent
FILES = ("leaderboard.csv", "leaderboard.md", "leaderboard.jsonl", "leaderboard.tex", "quoted.csv")
# The colours of a picture, and the page's variables that take their place, light or dark.
INKS = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"}
INKS |= {colour: f"c{colour[1:]}" for colour in COLOURS}


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """`index.html`, the page."""
    return [write_text(folder / "index.html", html(records, folder))]


def html(records: Sequence[Record], folder: Path | None = None) -> str:
    """The page as one text; pictures, style and script are in it, and it asks for nothing else.

    folder: of the run, where the items of its cells lie.
    """
    require(records)
    records = without_repeats(records)
    columns, rows = ranking(records, folder)
    has_mini_tasks = any(spec.name.startswith("mini-") for spec in specs(records))
    return rendered(
        "page.html",
        models=models(records),
        lead=lead(records),
        mini=MINI_NOTICE if has_mini_tasks else "",
        pictures=[_pictures(records, model, k, folder) for k, model in enumerate(models(records))],
        captions=captions(records),
        files=FILES,
        columns=columns,
        explained=[column for column in columns if column.explanation],
        rows=rows,
        tasks=list(dict.fromkeys(column.task for column in columns if column.task)),
        filters=[choice for choice in filters(records) if len(choice.choices) > 1],
        failures=reasons(records),
        doubts=doubts(records),
        cautions=summary(records, pairs_of(records, folder)),
        untimed=[(label(record), reason) for record, reason in latencies.missing(ordered(records))],
        quoted=by_model(models(records)),
        quoted_notice=NOTICE,
        protocols=protocols(records),
        environment=environment(records),
        script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
    )


def rendered(template: str, **values: Any) -> str:
    """A page of this folder's templates, whole: style and colours are in it, text is escaped."""
    return (
        _templates()
        .get_template(template)
        .render(
            style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
            colours=[(light[1:], dark[1:]) for light, dark in COLOURS.items()],
            **values,
        )
    )


@cache
def _templates() -> Environment:
    """The templates, each compiled once: that takes longer than to fill one in."""
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def _shown(value: Any) -> Any:
    """Text of records with what cannot be seen written out; markup of ours as it is."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable_lines(value)
    return value


def _pictures(
    records: Sequence[Record], model: str, index: int, folder: Path | None
) -> dict[str, Any]:
    """The pictures of one model: the leading scores drawn here, and all of them as files."""
    mine = [record for record in records if record.cell.model == model]
    leaders = leading(mine)
    drawings: list[dict[str, Any]] = []
    files = []
    for _, headline, cost in offered(mine):
        title = f"{headline.title} against {cost.short}"
        files.append((title, f"pictures/{file_name(model, headline, cost)}"))
        if headline in leaders:
            figure = headline_figure(records, headline, model, cost, folder)
            prefix = f"p{index}-{len(drawings)}-"
            drawings.append({"title": f"{model}: {title}", "svg": _inline(figure, prefix)})
    return {"name": model, "drawings": drawings, "files": files}


def _inline(figure: Figure, prefix: str) -> Markup:
    """The figure as SVG whose colours follow the page's, and whose points lead to their cells.

    prefix: of the names of its parts, which must differ between the pictures of one page.
    """
    text = svg(figure, prefix, "cells")
    for colour, name in INKS.items():
        text = text.replace(f": {colour}", f": var(--{name})")
    return Markup(text)
