"""The rows of the page's table: ranked, with links, and with what they are filtered by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qbench.comparison.pairs import is_unquantized, pairs_of
from qbench.comparison.ranks import outdone, ranks
from qbench.records import Record
from qbench.reports.cell_names import format_of, ordered
from qbench.reports.explanations import explanation
from qbench.reports.headline import Headline, headlines
from qbench.reports.plots import leading, slug
from qbench.reports.tables import grid

RANK = "#"
LONGEST = 40  # characters of a field that stands on one line
AT_LEAST = "≥"  # before a rank, where a cell that was judged otherwise may be better, too


@dataclass(frozen=True)
class Column:
    """heading: with arrow and unit. classes: of CSS; `extra` columns are not shown on a phone.

    task: of which it is a score, empty for other columns.
    """

    heading: str
    explanation: str
    classes: str
    task: str = ""

    @property
    def extra(self) -> bool:
        """Whether a phone does not show it."""
        return "extra" in self.classes.split()

    @property
    def own_classes(self) -> str:
        """Those of its fields; `extra` ones are told by their place, as there may be thousands."""
        return " ".join(name for name in self.classes.split() if name != "extra")


@dataclass(frozen=True)
class Field:
    """text, below: what people read, the latter small. value: what it sorts by. href: a page."""

    text: str
    value: float | str | None = None
    best: bool = False
    href: str | None = None
    below: str = ""

    @property
    def is_long(self) -> bool:
        """Whether it takes several lines."""
        return len(self.text) > LONGEST

    @property
    def sorts_by(self) -> str | None:
        """The value in six digits; None where the text says as much."""
        if self.value is None:
            return "" if self.text else None
        if isinstance(self.value, str):
            return None if self.value == self.text else self.value
        digits = f"{self.value:.6g}"
        try:
            return None if float(self.text) == float(digits) else digits
        except ValueError:
            return digits


@dataclass(frozen=True)
class Row:
    """method: of the cell. filters: the values that the choices of `filters` are compared with."""

    entries: list[Field]
    method: str
    filters: list[str]


@dataclass(frozen=True)
class Filter:
    """A choice above the table. place: of its value among those of a row."""

    place: int
    key: str
    name: str
    choices: list[str]


def ranking(
    records: Sequence[Record], folder: Path | None = None
) -> tuple[list[Column], list[Row]]:
    """All cells: by model and nominal bits, and there the best first by the leading score.

    folder: of the run, where the items lie, by whose pairs cells are ranked. The unquantized model
    comes first, cells without that score last.
    """
    names, rows = grid(records, folder)
    leaders_of = _leaders(records)
    places: dict[str, int] = {}
    beaten: set[str] = set()
    for model, leader in leaders_of.items():
        if leader is not None:
            mine = [record for record in records if record.cell.model == model]
            asked_so = [record for record in mine if leader.of(record)]
            places |= ranks(asked_so, leader.key, pairs_of(records, folder))
            beaten |= outdone(asked_so, leader.key)
    columns = [Column(RANK, explanation(RANK, None), "extra")]
    by_title = {headline.title: headline for headline in headlines(records)}
    leaders = leading(records)
    columns += [_column(name, by_title.get(name), leaders) for name in names]
    cells = list(zip(ordered(records), rows, strict=True))
    # stable: the order of reports else
    cells.sort(key=lambda cell: _order(cell[0], leaders_of[cell[0].cell.model]))
    ranked = []
    for record, row in cells:
        rank = places.get(record.id)
        least = AT_LEAST if record.id in beaten else ""
        fields = [Field("" if rank is None else f"{least}{rank}", rank)]
        for name, entry in zip(names, row, strict=True):
            href = cell_page(record.id) if name == "method" else None
            fields.append(Field(entry.text, entry.value, entry.best, href, entry.below))
        ranked.append(Row(fields, record.cell.method, _filter_values(record)))
    return columns, ranked


def filters(records: Sequence[Record]) -> list[Filter]:
    """The choices that tell some cells from others."""
    keys = ("model", "bits", "method", "group", "format", "status")
    rows = [_filter_values(record) for record in ordered(records)]
    choices = []
    for index, key in enumerate(keys):
        values = dict.fromkeys(row[index] for row in rows if row[index])
        choices.append(Filter(index, key, key, list(values)))
    return choices


def cell_page(cell: str) -> str:
    """The page of a cell by its id, relative to the run's folder."""
    return f"cells/{cell}.html"


def method_page(method: str) -> str:
    """The page of a method, relative to the run's folder."""
    return f"methods/{slug(method)}.html"


def _column(name: str, headline: Headline | None, leaders: Sequence[Headline]) -> Column:
    metric = None if headline is None else headline.metric
    classes = []
    if name in ("model", "method", "format"):
        classes.append("word")
    if name == "method":
        classes.append("stick")
    # The model is a column where there are several.
    if name not in ("model", "method", "bits/weight (measured)") and headline not in leaders:
        classes.append("extra")
    heading = name if headline is None else headline.heading
    task = "" if headline is None else headline.task
    return Column(heading, explanation(name, metric), " ".join(classes), task)


def _leaders(records: Sequence[Record]) -> dict[str, Headline | None]:
    """The score by which the cells of each model are ranked: the divergence if it is
    there, which sees most.
    """
    leaders: dict[str, Headline | None] = {}
    for model in dict.fromkeys(record.cell.model for record in records):
        scores = leading([record for record in records if record.cell.model == model])
        leaders[model] = scores[-1] if scores else None
    return leaders


def _order(record: Record, leader: Headline | None) -> tuple[str, float, float]:
    """By model, nominal bits, and the score with the sign that makes a smaller one better."""
    scheme = record.cell.scheme
    score = None if leader is None else leader.of(record)
    badness = math.inf
    if leader is not None and score is not None and math.isfinite(score.value):
        badness = -score.value if leader.higher_is_better else score.value
    return record.cell.model, -1 if scheme is None else scheme.width, badness


def _filter_values(record: Record) -> list[str]:
    cell = record.cell
    group = ""
    bits = ""
    if cell.scheme is not None:
        bits = str(cell.scheme.width)
        group = str(cell.scheme.group_size or "channel")
    method = "unquantized" if is_unquantized(record) else cell.made_by
    return [cell.model, bits, method, group, format_of(record), record.status]
