"""The rows of the page's table: ranked, with links, and with what they are filtered by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qbench.records import Record
from qbench.reports.explanations import explanation
from qbench.reports.headline import Headline, headlines, ordered, unquantized
from qbench.reports.plots import leading, slug
from qbench.reports.tables import grid

RANK = "#"


@dataclass(frozen=True)
class Column:
    """heading: with arrow and unit. classes: of CSS; `extra` columns are not shown on a phone."""

    heading: str
    explanation: str
    classes: str


@dataclass(frozen=True)
class Field:
    """text, below: what people read, the latter small. value: what it sorts by. href: a page."""

    text: str
    value: float | str | None = None
    best: bool = False
    href: str | None = None
    below: str = ""


@dataclass(frozen=True)
class Row:
    """method: of the cell. filters: the values that the choices of `filters` are compared with."""

    entries: list[Field]
    method: str
    filters: list[str]


@dataclass(frozen=True)
class Filter:
    """A choice above the table."""

    key: str
    name: str
    choices: list[str]


def ranking(records: Sequence[Record]) -> tuple[list[Column], list[Row]]:
    """All cells: by model and nominal bits, and there the best first by the leading score.

    The unquantized model comes first, cells without that score last.
    """
    names, rows = grid(records)
    leaders = leading(records)
    columns = [Column(RANK, explanation(RANK, None), "stick-not extra")]
    columns += [_column(name, records, leaders) for name in names]
    cells = list(zip(ordered(records), rows, strict=True))
    cells.sort(key=lambda cell: _order(cell[0], leaders))  # stable: the order of reports else
    ranked = []
    ranks: dict[tuple[str, int], int] = {}
    for record, row in cells:
        rank = _rank(record, leaders, ranks)
        fields = [Field("" if rank is None else str(rank), rank)]
        for name, entry in zip(names, row, strict=True):
            href = _page(record, name)
            fields.append(Field(entry.text, entry.value, entry.best, href))
        ranked.append(Row(fields, record.cell.method, _filter_values(record)))
    return columns, ranked


def filters(records: Sequence[Record]) -> list[Filter]:
    """The choices that tell some cells from others."""
    keys = ("model", "bits", "method", "group", "status")
    values = list(zip(*(_filter_values(record) for record in ordered(records)), strict=True))
    return [
        Filter(key, key, list(dict.fromkeys(value for value in column if value)))
        for key, column in zip(keys, values, strict=True)
    ]


def cell_page(cell: str) -> str:
    """The page of a cell by its id, relative to the run's folder."""
    return f"cells/{cell}.html"


def method_page(method: str) -> str:
    """The page of a method, relative to the run's folder."""
    return f"methods/{slug(method)}.html"


def _column(name: str, records: Sequence[Record], leaders: Sequence[Headline]) -> Column:
    by_title = {headline.title: headline for headline in headlines(records)}
    headline = by_title.get(name)
    metric = None if headline is None else headline.metric
    classes = []
    if name in ("model", "method"):
        classes.append("word")
    if name == "method":
        classes.append("stick")
    if name not in ("method", "bits/weight (measured)") and headline not in leaders:
        classes.append("extra")
    heading = name if headline is None else headline.heading
    return Column(heading, explanation(name, metric), " ".join(classes))


def _page(record: Record, column: str) -> str | None:
    """What a field leads to: the method's name to the cell."""
    return cell_page(record.id) if column == "method" else None


def _bits(record: Record) -> int:
    return -1 if record.cell.scheme is None else record.cell.scheme.bits


def _order(record: Record, leaders: Sequence[Headline]) -> tuple[str, int, float]:
    return record.cell.model, _bits(record), _badness(record, leaders)


def _badness(record: Record, leaders: Sequence[Headline]) -> float:
    """The last leading score with the sign that makes a smaller one better; inf without one."""
    score = leaders[-1].of(record) if leaders else None
    if score is None or not math.isfinite(score.value):
        return math.inf
    return -score.value if leaders[-1].higher_is_better else score.value


def _rank(
    record: Record, leaders: Sequence[Headline], ranks: dict[tuple[str, int], int]
) -> int | None:
    """1 for the first cell of its model and bits; None for the baseline and where nothing ranks."""
    if unquantized(record) or math.isinf(_badness(record, leaders)):
        return None
    key = (record.cell.model, _bits(record))
    ranks[key] = ranks.get(key, 0) + 1
    return ranks[key]


def _filter_values(record: Record) -> list[str]:
    cell = record.cell
    group = ""
    bits = ""
    if cell.scheme is not None:
        bits = str(cell.scheme.bits)
        group = str(cell.scheme.group_size or "channel")
    method = "unquantized" if unquantized(record) else cell.stored_as or cell.method
    return [cell.model, bits, method, group, record.status]
