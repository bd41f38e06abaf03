"""The picture of a score that a test names by its task and its metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from qbench.records import Record
from qbench.reports.cell_names import ordered
from qbench.reports.headline import headlines
from qbench.reports.plots import headline_figure


def quality_figure(
    records: Sequence[Record], task: str, metric: str, folder: Path | None = None
) -> Figure:
    """The score of the first model of the tables against measured bits per weight."""
    headline = next(h for h in headlines(records) if (h.task, h.metric) == (task, metric))
    return headline_figure(records, headline, ordered(records)[0].cell.model, folder=folder)
