"""Pictures from records: quality against measured bits per weight. The object API only, no global figure state."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from qbench.errors import DataError
from qbench.files.atomic import write_bytes, write_text
from qbench.records import Record, Score
from qbench.reports.axes import INK, MUTED, PAPER, RULE, looks, panel, unbroken
from qbench.reports.headline import Headline, headlines, ordered, require

STYLE: dict[str, Any] = {
    **{
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.axisbelow": True,
    },
    **{
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
    },
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": RULE},
    **{
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "text.parse_math": False,
    },
    **{"svg.fonttype": "path", "svg.hashsalt": "qbench", "font.family": ["DejaVu Sans"]},
}


def quality_figure(
    records: Sequence[Record],
    task: str,
    metric: str,
    *,
    filter: str | None = None,
    model: str | None = None,
) -> Figure:
    """One score of one model (the first one, unless named) against measured bits per weight."""
    require(records)
    known = [
        Headline(s.task, s.metric, s.filter, s.higher_is_better)
        for r in records
        for s in _scores(r)
    ]
    fits = [h for h in known if (h.task, h.metric) == (task, metric) and filter in (None, h.filter)]
    if not fits:
        there = (
            ", ".join(sorted({h.title for h in known})) or "none, every cell failed or was skipped"
        )
        raise DataError(
            f"no record has the score {task} {metric} {filter or ''}".rstrip()
            + f"; there are: {there}"
        )
    return _figure(records, fits[:1], model or ordered(records)[0].cell.model)


def first_figure(records: Sequence[Record], model: str) -> Figure:
    """The picture people look at first: perplexity and divergence, or else the first headline score."""
    return _figure(records, leading(records), model)


def leading(records: Sequence[Record]) -> list[Headline]:
    """Perplexity and mean divergence if both are there, otherwise the first headline score if there is any."""
    found = headlines(records)
    pair = [
        next((h for h in found if h.metric == metric), None) for metric in ("perplexity", "kl_mean")
    ]
    return [h for h in pair if h] if all(pair) else found[:1]


def write_pictures(records: Sequence[Record], folder: Path) -> list[Path]:
    """`quality.png`, the first picture, and an SVG per headline score; a further model's name is in its file names."""
    require(records)
    paths = []
    for k, model in enumerate(models(records)):
        paths.append(write_quality(records, folder, model, first=k == 0))
        for headline in headlines([record for record in records if record.cell.model == model]):
            parts = [
                headline.task,
                headline.metric,
                *([headline.filter] if headline.filter != "none" else []),
            ]
            name = slug("-".join(parts + [model] * (k > 0)))
            paths.append(
                write_text(folder / f"{name}.svg", svg(_figure(records, [headline], model)))
            )
    return paths


def write_quality(records: Sequence[Record], folder: Path, model: str, first: bool) -> Path:
    """`quality.png`, or `quality-MODEL.png` where this is not the first model."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        first_figure(records, model).savefig(
            buffer, format="png", dpi=180, metadata={"Software": "qbench"}
        )
    return write_bytes(
        folder / ("quality.png" if first else f"quality-{slug(model)}.png"), buffer.getvalue()
    )


def models(records: Sequence[Record]) -> list[str]:
    """The models, in the order of the tables."""
    return list(dict.fromkeys(record.cell.model for record in ordered(records)))


def slug(text: str) -> str:
    """A file name of letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "unnamed"


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element without time stamps or foreign addresses; same records, same text."""
    buffer = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(
            buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = buffer.getvalue()
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def _scores(record: Record) -> tuple[Score, ...]:
    return record.scores if record.status == "ok" else ()


def _figure(records: Sequence[Record], panels: Sequence[Headline], model: str) -> Figure:
    mine = [record for record in ordered(records) if record.cell.model == model]
    with rc_context(STYLE):
        width = 6.2 if len(panels) < 2 else 10.6
        figure = Figure(figsize=(width, 5.0), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        if not panels:
            figure.text(
                0.5,
                0.5,
                f"{model}\nno scores: every cell failed or was skipped",
                ha="center",
                va="center",
            )
            return figure
        styles, drawn = looks(records), set[str]()
        notes = [f"{model}. Bars and band: ± 1 standard error."]
        for axes, headline in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            drawn |= panel(axes, mine, headline, styles, notes)
        lost = [unbroken(record.cell.label) for record in mine if record.status != "ok"]
        notes += [f"Failed or skipped: {', '.join(lost)}."] if lost else []
        _legend(
            figure,
            [Line2D([], [], label=name, **styles[name]) for name in styles if name in drawn],
            len(panels),
        )
        text = textwrap.fill(
            " ".join(dict.fromkeys(notes)), 90 * len(panels), max_lines=5, placeholder=" ..."
        )
        figure.supxlabel(text, fontsize=8, color=MUTED, ha="left", x=0.012)
    return figure


def _legend(figure: Figure, handles: Sequence[Line2D], panels: int) -> None:
    if handles:
        columns = _columns(handles, 74 * panels)
        figure.set_figheight(figure.get_figheight() + 0.23 * (-(-len(handles) // columns) - 1))
        figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False)


def _columns(handles: Sequence[Line2D], width: int) -> int:
    """The most columns of a legend, filled column by column, in this many characters."""
    sizes = [len(str(handle.get_label())) + 7 for handle in handles]
    for columns in range(len(sizes), 1, -1):
        rows = -(-len(sizes) // columns)
        if sum(max(sizes[k : k + rows]) for k in range(0, len(sizes), rows)) <= width:
            return columns
    return 1
