"""The pictures as files, for papers and slides: `pictures/*.svg` and `pictures/*.pdf`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from qbench.files.atomic import write_bytes, write_text
from qbench.records import Record
from qbench.reports.headline import Headline, headlines, require
from qbench.reports.plots import (
    STYLE,
    distinct_slug,
    headline_figure,
    leading,
    models,
    printed,
    slug,
    svg,
)
from qbench.reports.points import BITS, COSTS, Cost
from qbench.reports.repeats import without_repeats

TAKES_LONG = True  # so that it begins first where several reports are written at once


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """Each picture of `offered`, twice."""
    require(records)
    records = without_repeats(records)
    paths = []
    for model, headline, cost in offered(records):
        figure = headline_figure(records, headline, model, cost, folder)
        name = file_name(model, headline, cost)  # in which a dot is no ending
        paths.append(write_text(folder / "pictures" / f"{name}.svg", svg(figure)))
        paths.append(write_bytes(folder / "pictures" / f"{name}.pdf", pdf(figure)))
    return paths


def offered(records: Sequence[Record]) -> Iterator[tuple[str, Headline, Cost]]:
    """Model, score and cost of each picture.

    The leading scores are drawn against every cost that is known, the others against bits.
    """
    for model in models(records):
        mine = [record for record in records if record.cell.model == model]
        leaders = leading(mine)
        for headline in leaders:
            for cost in COSTS:
                if _drawable(mine, headline, cost):
                    yield model, headline, cost
        for headline in headlines(mine):
            if headline not in leaders and _drawable(mine, headline, BITS):
                yield model, headline, BITS


def file_name(model: str, headline: Headline, cost: Cost) -> str:
    """Of a picture, without its ending."""
    words = [distinct_slug(model), headline.task, headline.metric]
    if headline.filter != "none":
        words.append(headline.filter)
    if headline.settings:
        words.append(headline.settings)
    return slug("-".join([*words, "against", cost.short]))


def pdf(figure: Figure) -> bytes:
    """The figure as a PDF without time stamps; same figure, same bytes."""
    buffer = io.BytesIO()
    metadata = dict.fromkeys(("Creator", "Producer", "CreationDate"))
    with rc_context(STYLE):
        printed(figure).savefig(buffer, format="pdf", metadata=metadata)
    return buffer.getvalue()


def _drawable(mine: Sequence[Record], headline: Headline, cost: Cost) -> bool:
    """Whether some cell has the score and the cost."""
    return any(headline.of(record) and cost.of(record) is not None for record in mine)
