"""Which answers changed between two cells, and how."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from qbench.comparison.pairs import aligned
from qbench.comparison.samples import Items, Row, item_name
from qbench.stats.flips import Flips, Kind, count, kind_of

SHOWN = 10  # changed answers that are listed


@dataclass(frozen=True)
class Change:
    """One answer that changed.

    item: where it stands in its data. before, after: the answers. text: the question, where known.
    """

    kind: Kind
    item: str
    target: str
    before: str
    after: str
    text: str = ""


def flips(base: Sequence[Items], candidate: Sequence[Items]) -> tuple[Flips, list[Change]]:
    """How many answers changed over all draws, and the first of them in the first draw.

    base, candidate: of every draw, the same items. Answers that became wrong come first.
    """
    kinds: list[Kind | None] = []
    changes: list[Change] = []
    for draw, (items, others) in enumerate(zip(base, candidate, strict=True)):
        for index, place in enumerate(aligned(items, others) or []):
            rows = items.rows[index], others.rows[place]
            right = bool(items.values[index] == 1), bool(others.values[place] == 1)
            kind = kind_of(right, (answer(rows[0]), answer(rows[1])))
            kinds.append(kind)
            if kind is not None and draw == 0:
                changes.append(_change(kind, rows))
    order_of = ("right to wrong", "wrong to right", "wrong to another wrong")
    changes.sort(key=lambda change: order_of.index(change.kind))
    return count(kinds), changes[:SHOWN]


def _change(kind: Kind, rows: tuple[Row, Row]) -> Change:
    before, after = str(answer(rows[0])), str(answer(rows[1]))
    return Change(kind, item_name(rows[0]), str(rows[0].get("target")), before, after)


def answer(row: Row) -> Hashable:
    """What was answered: the number of the likeliest choice, or what a filter took from a text."""
    logs = row.get("loglikelihoods")
    if isinstance(logs, list) and logs:
        return int(np.argmax(logs))
    filtered = row.get("filtered")
    if isinstance(filtered, list):
        return " ".join(str(text) for text in filtered)
    return str(filtered)
